"""CamVid as one file that is small enough to carry: JPEG images (4:4:4) and the label PNGs as they are.

    python launch/pack_camvid.py pack DIR camvid.zip [--quality=95]
    python launch/pack_camvid.py unpack camvid.zip DIR

DIR holds {train,val,test}/*.png and {train,val,test}annot/*.png. JPEG loses a little: state the packing beside any
result. At quality 95 the set takes 55 MiB, at 90 it takes 33, and 4 for the labels.
"""

import argparse
import io
import pathlib
import sys
import zipfile

from PIL import Image

SPLITS = ("train", "val", "test")


def pack(folder: pathlib.Path, file: pathlib.Path, quality: int) -> int:
    """Writes the zip file; returns how many pairs are in it.

    Raises:
        FileNotFoundError: a folder, or the label of an image, is missing.
    """
    count = 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for split in SPLITS:
            images = sorted((folder / split).glob("*.png"))
            if not images:
                raise FileNotFoundError(f"{folder / split}: no *.png in it")
            for image in images:
                label = folder / f"{split}annot" / image.name
                if not label.is_file():
                    raise FileNotFoundError(f"{label} is missing, the label of {image}")
                jpeg = io.BytesIO()
                with Image.open(image) as opened:
                    opened.convert("RGB").save(jpeg, "JPEG", quality=quality, subsampling=0)
                archive.writestr(f"{split}/{image.stem}.jpg", jpeg.getvalue())
                archive.write(label, f"{split}annot/{label.name}")
                count += 1
    return count


def unpack(file: pathlib.Path, folder: pathlib.Path) -> int:
    """Writes DIR/{train,val,test}{,annot}/*.png; returns how many pairs there are.

    Raises:
        ValueError: the file is no such archive.
    """
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is no zip file; make one with: pack_camvid.py pack DIR {file}")
    count = 0
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            target = folder / pathlib.PurePosixPath(name).with_suffix(".png")
            if (
                target.parent.parent != folder
                or target.parent.name.removesuffix("annot") not in SPLITS
            ):
                raise ValueError(f"{file} holds {name}, which is no part of CamVid")
            target.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".jpg"):
                with Image.open(io.BytesIO(archive.read(name))) as opened:
                    opened.save(target, compress_level=1)
                count += 1
            else:
                target.write_bytes(archive.read(name))
    return count


def main() -> None:
    """Reads the arguments and makes one call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("pack", "unpack"))
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG images")
    options = parser.parse_args()
    try:
        if options.command == "pack":
            count = pack(options.source, options.target, options.quality)
            size = options.target.stat().st_size / 2**20
            print(f"{count} pairs, JPEG {options.quality} 4:4:4, {size:.1f} MiB: {options.target}")
        else:
            print(f"{unpack(options.source, options.target)} pairs: {options.target}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
