"""FID and KID: they equal pytorch-fid's number on the same folders and weights, and errors name what is missing."""

import warnings

import numpy as np
import pytest
import torch
from conftest import call, save_pictures
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_fid
from torchmetrics.image.kid import poly_mmd

from dato import DatoError
from dato.cli.metric_options import real_pictures_of
from dato.metrics import Setup
from dato.metrics.fid import INCEPTION, REAL, Fid, Kid, inception_model
from dato.metrics.inception import FEATURES, Inception
from dato.metrics.real_pictures import folder_features, pictures_in
from dato.utils.images import read_image


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights, where torch's hub would keep the published one."""
    hub = tmp_path_factory.mktemp("hub")
    path = hub / "checkpoints" / pytorch_fid.FID_WEIGHTS_URL.rpartition("/")[2]
    path.parent.mkdir()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = pytorch_fid.fid_inception_v3()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data *= 6**0.5  # He's variance; torch's own lets features fade through the layers
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def setup(weights, tmp_path_factory):
    """A setup whose real pictures are seven of two sizes, in two formats."""
    folder = tmp_path_factory.mktemp("real")
    save_pictures(folder, [(3, 48, 40)] * 4, seed=1)
    save_pictures(folder, [(3, 32, 32)] * 3, seed=2, suffix="jpg")
    return Setup(inception=weights, real=folder)


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def fid(setup):
    return Fid(setup)


@pytest.fixture(scope="module")
def value(fid, images):
    with pytest.warns(UserWarning, match="FID of 5 images is biased"):
        return fid(images, [], images)


@pytest.mark.thorough  # its matrix roots take half a minute
def test_fid_is_the_number_of_pytorch_fid_on_the_same_folders(setup, weights, images, value, tmp_path, monkeypatch):
    made = tmp_path / "made"
    made.mkdir()
    save_pictures(made, images)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(weights.parent.parent))
    # One at a time: its loader cannot put pictures of several sizes into one batch.
    expected = fid_score.calculate_fid_given_paths([str(made), str(setup.get(REAL))], 1, "cpu", FEATURES, num_workers=0)
    assert expected > 1e-3
    assert -value == pytest.approx(expected, rel=1e-4)


def test_statistics_of_pytorch_fid_stand_for_the_folder(setup, fid, tmp_path):
    mean, covariance = fid.real
    np.savez(tmp_path / "real.npz", mu=mean, sigma=covariance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = Fid(Setup(inception=setup.get(INCEPTION), real=tmp_path / "real.npz"))
        for ours, theirs in zip(own.real, (mean, covariance), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


def test_features_do_not_depend_on_batches_order_or_neighbours(setup, images):
    inception = inception_model(setup)
    whole = inception.features(images)
    single = torch.cat([inception.features(image[None]) for image in images])
    assert whole.shape == (5, FEATURES) and torch.allclose(whole, single, atol=1e-5)
    assert torch.allclose(inception.features(images.flip(0)).flip(0), whole, atol=1e-5)
    assert inception.features(images[:0]).shape == (0, FEATURES)


def test_the_network_is_pytorch_fids(weights, images):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(weights.parent.parent))
        theirs = pytorch_fid.InceptionV3().eval()
        from_cache = Inception()
    pixels = (images * 255).round().clamp(0, 255) / 255
    expected = theirs(pixels)[0].flatten(1)
    for inception in (from_cache, Inception(weights)):
        assert torch.equal(inception.features(images), expected)


def test_folders_are_read_in_the_order_of_names_whatever_the_sizes(setup):
    found = folder_features(setup.get(REAL), inception_model(setup))
    paths = sorted(setup.get(REAL).iterdir())
    own = torch.cat([inception_model(setup).features(read_image(path)[None]) for path in paths])
    assert len(found) == 7 and torch.allclose(found, own, atol=1e-5)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "JPG", "WebP", "Tiff"])
def test_suffixes_in_capitals_are_pictures_too(suffix, tmp_path):
    save_pictures(tmp_path, [(3, 8, 8)] * 2, seed=1)
    save_pictures(tmp_path, [(3, 8, 8)] * 3, seed=2, suffix=suffix)
    (tmp_path / "labels.txt").touch()
    assert len(pictures_in(tmp_path)) == 5
    said = real_pictures_of(("psnr", "fid", "kid"), {"real": str(tmp_path)})
    assert said == f"fid and kid: compared with 5 pictures in {tmp_path} (1 other entry of the folder not read)"


def test_pictures_are_counted_only_where_a_metric_reads_them(tmp_path):
    save_pictures(tmp_path, [(3, 8, 8)])
    assert real_pictures_of(("fid",), {"real": str(tmp_path)}) == f"fid: compared with 1 picture in {tmp_path}"
    assert real_pictures_of(("psnr",), {"real": str(tmp_path)}) is None and real_pictures_of(("fid",), {}) is None
    (tmp_path / "real.npz").touch()
    assert real_pictures_of(("fid",), {"real": str(tmp_path / "real.npz")}) is None


@pytest.mark.parametrize(
    "command", [("evaluate", "--metrics", "fid", "--images", "2"), ("search", "depth", "--quality", "fid")]
)
def test_commands_say_how_many_pictures_they_read(command, monkeypatch, capsys, tmp_path):
    def enough(*_):
        raise DatoError("enough")

    for module in ("experiments.paper_evaluation", "evaluation.ray_pool"):
        monkeypatch.setattr(f"dato.{module}.make_pool", enough)
    (tmp_path / "real").mkdir()
    save_pictures(tmp_path / "real", [(3, 8, 8)] * 3, suffix="JPEG")
    code, _, errors = call(monkeypatch, capsys, *command, "--real", tmp_path / "real", "--out", tmp_path / "out")
    said = f"fid: compared with 3 pictures in {tmp_path / 'real'}"
    assert code == 2 and "error: enough" in errors and said in errors.splitlines()


def test_kid_is_the_unbiased_estimate_and_always_the_same(setup, images):
    kid = Kid(setup)
    first = kid(images, [], images)
    torch.manual_seed(99)
    assert kid(images, [], images) == first
    # Where all pictures are in every subset, the mean over subsets is the estimate itself.
    real = kid.real
    equal = Kid(setup)
    own = -equal.summary(real + 0.0) / 1000
    assert own == pytest.approx(poly_mmd(real, real).item(), abs=1e-6) and own < 0  # unbiased: may be negative
    assert -first > -equal.summary(real)


def test_what_is_no_number_has_no_distance(setup, fid):
    bad = torch.full((3, FEATURES), torch.nan)
    assert np.isnan(fid.summary(bad)) and np.isnan(Kid(setup).summary(bad))


def test_what_cannot_be_had_is_named(setup, fid, weights, tmp_path, monkeypatch):
    for metric in (Fid, Kid):
        with pytest.raises(DatoError, match="compares with real pictures: give a folder as `real`"):
            metric(Setup(inception=weights))
        with pytest.raises(DatoError, match="no such folder or file"):
            metric(Setup(inception=weights, real=tmp_path / "none"))
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    (tmp_path / "text.npz").write_text("no")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(DatoError, match="no statistics of pytorch-fid"):
            Fid(Setup(inception=weights, real=tmp_path / name))
    with pytest.raises(DatoError, match="give a folder"):
        Kid(Setup(inception=weights, real=tmp_path / "other.npz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatoError, match="no pictures there"):
        _ = Fid(Setup(inception=weights, real=tmp_path / "empty")).real
    (tmp_path / "empty" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    for metric in (Fid, Kid):
        with pytest.raises(DatoError, match="needs at least 2 real pictures, better thousands"):
            metric(Setup(inception=weights, real=tmp_path / "empty"))
    save_pictures(tmp_path / "empty", [(3, 8, 8)])
    with pytest.raises(DatoError, match=r"torn\.png: cannot be read as a picture"):
        _ = Kid(Setup(inception=weights, real=tmp_path / "empty")).real
    with pytest.raises(DatoError, match="at least 2 images"):
        fid.summary(torch.zeros(1, FEATURES))
    with pytest.raises(DatoError, match="not the weights of pytorch-fid's InceptionV3"):
        Inception(tmp_path / "text.npz")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(DatoError, match=r"other\.pth: not the weights"):
        Inception(tmp_path / "other.pth")
    (tmp_path / "other.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DatoError, match=r"other\.pth is damaged: it is a pointer of Git LFS"):
        Inception(tmp_path / "other.pth")

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DatoError, match=r"fetch https://.*pt_inception.* and put it into .*checkpoints"):
        Inception()
