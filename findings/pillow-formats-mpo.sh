#!/usr/bin/env bash
# Pillow 13.0.0 opens a photograph of two pictures (MPO, as phones and 3D cameras write them) and says
# that its format is "MPO", and Image.registered_extensions() lists ".mpo". The name cannot be given
# back to Image.open(formats=...): "MPO" there is a KeyError, for files of every format that is not
# recognized before its turn, and "JPEG" alone opens the file. Seen, with Python 3.11:
#   opened without formats: MPO 2 pictures
#   mpo with formats=['MPO']: KeyError 'MPO'
#   png with formats=['MPO', 'PNG']: KeyError 'MPO'
#   mpo with formats=['JPEG']: MPO 2 pictures
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0

"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

from PIL import Image

two, png = f"{sys.argv[1]}/two.mpo", f"{sys.argv[1]}/one.png"
left, right = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
left.save(two, save_all=True, append_images=[right])
left.save(png)

with Image.open(two) as image:
    print("opened without formats:", image.format, image.n_frames, "pictures")
    assert image.format == "MPO"
assert Image.registered_extensions()[".mpo"] == "MPO"

for path, formats in [(two, ["MPO"]), (png, ["MPO", "PNG"])]:
    try:
        Image.open(path, formats=formats)
    except KeyError as error:
        print(f"{path[-3:]} with formats={formats}: KeyError {error}")
    else:
        sys.exit("this has changed: MPO is a name for formats")

with Image.open(two, formats=["JPEG"]) as image:
    print("mpo with formats=['JPEG']:", image.format, image.n_frames, "pictures")
    assert image.format == "MPO"
PYTHON
