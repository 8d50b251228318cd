"""Tests of the whole: a function deployed over REST between two hosts."""
