"""Get the pictures of the training: from a folder, an archive, or the npm registry."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

from dato.emoji_sd.pictures import SIZE
from dato.emoji_sd.training.folders import whole_folder
from dato.errors import DatoError

PACKAGE = "emoji-datasource-google@16.0.0"


def find(data: Path | None, run: Path) -> Path:
    """Return the folder of the unpacked package.

    Args:
        data: The folder, or a .tgz to unpack into `run`/package. None: download the package with npm and unpack it.
        run: The run's folder.

    Raises:
        DatoError: if `data` does not exist or cannot be unpacked, or npm is missing or fails.
    """
    unpacked = run / "package"
    if data is not None and data.is_dir():
        # `tar xzf` makes a folder "package", and users give its parent by mistake.
        return data / "package" if (data / "package" / "emoji.json").is_file() else data
    if data is not None and not data.is_file():
        raise DatoError(f"the pictures' package {data} does not exist")
    if unpacked.is_dir():
        return unpacked
    with whole_folder(unpacked) as folder:
        if data is not None:
            _unpack(data, folder)
        else:
            with tempfile.TemporaryDirectory() as fetched:
                _unpack(_fetch(Path(fetched)), folder)
    return unpacked


def _fetch(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise DatoError(f"npm is not installed: fetch {PACKAGE} elsewhere (npm pack) and give it as `data`")
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise DatoError(f"npm pack {PACKAGE} failed ({reason[0]}): give the package as `data`")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    # Unpack only the files that are needed: the archive also has large sprite sheets. Use base names only, because a
    # path in an archive may lead anywhere.
    pictures = folder / "img" / "google" / str(SIZE)
    pictures.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                inner = member.name.partition("/")[2]
                if not member.isfile():
                    continue
                if inner in ("emoji.json", "LICENSE"):
                    target = folder / inner
                elif inner.startswith(f"img/google/{SIZE}/") and inner.endswith(".png"):
                    target = pictures / Path(inner).name
                else:
                    continue
                target.write_bytes(tar.extractfile(member).read())
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise DatoError(f"cannot unpack {archive}: {reason}") from error
