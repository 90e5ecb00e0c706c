"""DICOM and HEIC: read with their packages, refused by the name of the extra without."""

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from datasets_fives import load_vessels
from datasets_fives.images import open_image, read_image


def draw() -> np.ndarray:
    rows, columns = np.mgrid[:24, :36]
    return np.stack([rows * 10, columns * 7, rows + columns], axis=-1).astype(np.uint8)


def as_dicom(pixels: np.ndarray, kind: str, bits: int = 8) -> bytes:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: no DICOM to read")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if pixels.ndim == 3 else 1, kind
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * pixels.itemsize, bits, bits - 1
    data.PixelRepresentation = 0
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PixelData = pixels.tobytes()
    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_shows_what_it_holds():
    np.testing.assert_array_equal(read_image(as_dicom(draw(), "RGB")), draw())
    grey = draw()[..., 0]
    for pixels, kind, bits in ((grey, "MONOCHROME2", 8), (255 - grey, "MONOCHROME1", 8),
                               (grey.astype(np.uint16), "MONOCHROME2", 8),
                               (grey.astype(np.uint16) * 257, "MONOCHROME2", 16)):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(read_image(as_dicom(pixels, kind, bits)))[..., 0], grey)
    deep = np.asarray(read_image(as_dicom(grey.astype(np.uint16) * 16, "MONOCHROME2", 12)))
    assert np.abs(deep[..., 0].astype(int) - grey).max() <= 1
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(as_dicom(grey, "MONOCHROME2")[:400])


def test_heic_is_read(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC to read")
    smooth = np.asarray(Image.fromarray(draw()).resize((144, 96), Image.Resampling.BICUBIC))
    heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "phone.heic", quality=95)
    assert np.abs(np.asarray(read_image(tmp_path / "phone.heic")).astype(int) - smooth).mean() < 4


def test_a_data_set_of_dicom_keeps_what_others_can_read(tmp_path):
    for index in range(4):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / "images" / f"1.2.{index}.dcm").write_bytes(as_dicom(draw() + np.uint8(index), "RGB"))
        mask = np.zeros((24, 36), np.uint8)
        mask[4 + index] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"1.2.{index}.png")
    data = load_vessels(
        tmp_path, split={"train": [f"1.2.{index}" for index in range(4)]}, cache_dir=tmp_path / "cache"
    )
    np.testing.assert_array_equal(data["train"][2]["image"], draw() + np.uint8(2))


@pytest.mark.parametrize(
    ("start", "message"),
    [(bytes(128) + b"DICM", "DICOM needs pydicom"), (b"\0\0\0\x18ftypheic", "HEIC needs pillow_heif")],
)
def test_without_its_package_a_format_is_refused_with_the_extra(start, message, monkeypatch):
    for package in ("pydicom", "pillow_heif"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf'{message}: pip install "reg4pru\[formats\]"'):
        open_image(start)
