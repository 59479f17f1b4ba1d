"""Import and export of checkpoints of other code bases.

Supported are the official Flax and PyTorch code (Song et al. 2021), diffusers folders (import only)
and safetensors files. Files are treated as data: nothing in them is executed, and PyTorch is
imported only for its own files. A tensor that is missing, left over or of another shape raises an
`InputError` that names it.
"""

from pretrained.checkpoint_files import Writer, read, writer
from pretrained.safetensors_format import read_config
from pretrained.trained import Trained

__all__ = ["Trained", "Writer", "read", "read_config", "writer"]
