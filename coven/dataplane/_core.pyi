# The types of the generated module: cffi's own objects, known only at run time.
from typing import Any

ffi: Any
lib: Any
