/* SPDX-License-Identifier: Apache-2.0 */
#include <coven/abi.h>
