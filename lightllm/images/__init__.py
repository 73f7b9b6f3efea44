"""Images of requests, up to what the model's prompt needs of them. Loads no torch.

source       what a body says of an image -> `ImageSource`
addresses    which hosts and addresses the server connects to
fetch        http(s) URL -> bytes
local_files  file:// URL -> bytes
decode       bytes -> width and height, or pixels
limits       the limits of all that, from the options
serving      whether a server takes images at all
intake       sources -> bytes, content hash, width and height: many at once, off the event loop
layouts/     a family's images in its prompts: marker, number of tokens, grid
prompt       prompt ids with markers -> with the images' ids in their places
counted      all of these for one prompt, up to and behind the image cache
objects      what Python callers give for an image -> `ImageSource`
blocking_intake  intake for a caller that waits
"""

from __future__ import annotations

import importlib.util

from lightllm.errors import StartupError


def check_installed() -> None:
    """Raises `StartupError` if a library is missing that only images need (the extra `vision`)."""
    packages = (("pillow", "PIL"), ("httpcore2", "httpcore2"))
    missing = [package for package, module in packages if importlib.util.find_spec(module) is None]
    if missing:
        raise StartupError(
            f"The model takes images, for which a package is missing: {', '.join(missing)}.",
            "Install it: pip install 'lightllm[vision]'.",
        )
