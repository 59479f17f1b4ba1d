"""Import and export of checkpoints of other code bases.

Supported are the official Flax and PyTorch code (Song et al. 2021), diffusers folders and EDM's
pickles (import only) and safetensors files. Files are treated as data: nothing in them is executed,
and PyTorch is imported only for its own files. A tensor that is missing, left over or of another
shape raises an `InputError` that names it.
"""

from pretrained.checkpoint_files import WITH_CONFIG, Writer, read, read_config, writer
from pretrained.trained import Trained

__all__ = ["WITH_CONFIG", "Trained", "Writer", "read", "read_config", "writer"]
