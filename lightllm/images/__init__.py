"""Images of requests, up to what the model's prompt needs of them. Loads no torch.

source       what a body says of an image -> `ImageSource`
addresses    which hosts and addresses the server connects to
fetch        http(s) URL -> bytes
local_files  file:// URL -> bytes
decode       bytes -> width and height, or pixels
limits       the limits of all that, from the options
intake       sources -> bytes, content hash, width and height: many at once, off the event loop
layouts/     a family's images in its prompts: marker, number of tokens, grid
prompt       prompt ids with markers -> with the images' ids in their places
"""
