"""The control plane's programs: pinned versions, where they are kept, how they are had.

Owns downloading (checksums verified) and building.
Must not know how the programs are run.
"""

from llmos_operator.local.binaries.resolution import Binaries, resolve
from llmos_operator.local.binaries.versions import NAMES, cache_folder

__all__ = ["NAMES", "Binaries", "cache_folder", "resolve"]
