"""A trained network as one object: what it is read from, what it takes, what it gives."""

import json

import numpy as np
import pytest
from PIL import Image

import rtseg_jax
from rtseg_jax.inference import network as networks
from rtseg_jax.weights import bundle
from tests import tiny
from tests.inference.test_infer import frames


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_network):
    return tiny.write(tmp_path_factory.mktemp("runs") / "run", tiny.config())


@pytest.fixture(scope="module")
def network(run):
    return rtseg_jax.load(run)


@pytest.fixture(scope="module")
def photo():
    return frames(height=90, width=70)[0]


def test_a_run_and_its_bundle_are_one_network(run, network, photo, tmp_path):
    network.save(tmp_path / "net.safetensors")
    for place in (str(run), tmp_path / "net.safetensors"):
        other = rtseg_jax.load(place)
        assert (other.name, other.step, other.dtype) == ("tiny", 7, "float32")
        assert other.table == network.table and other.sees == network.sees
        np.testing.assert_array_equal(other(photo), network(photo))
    assert len(np.unique(network(photo))) > 1 and network.class_names[0] == "road"


def test_arrays_pictures_and_files_are_taken(network, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = network(photo)
    assert expected.shape == (90, 70) and expected.dtype == np.uint8
    for image in (Image.fromarray(photo), tmp_path / "photo.png", str(tmp_path / "photo.png")):
        np.testing.assert_array_equal(network(image), expected)
    several = network(np.stack([photo, photo[:, ::-1]]))
    assert several.shape == (2, 90, 70)
    np.testing.assert_array_equal(several[0], expected)
    assert (several[1] != expected).any()


def test_compiling_is_said_once_for_each_size(network, photo, capsys):
    own = network.seeing("own")
    for _ in range(2):
        own(photo)
    own(photo[:64])
    assert capsys.readouterr().err.splitlines() == [
        "tiny is compiled for frames of 1x90x70, once",
        "tiny is compiled for frames of 1x64x70, once",
    ]
    network.seeing("own", quiet=True)(photo)
    assert not capsys.readouterr().err


def test_an_overlay_is_a_picture_above_a_legend(network, photo):
    drawn = network.overlay(photo)
    assert isinstance(drawn, Image.Image)
    assert drawn.width >= 70 and drawn.height > 90
    assert (np.asarray(drawn)[:90, :70] != photo).mean() > 0.5


def test_it_can_be_shown_frames_otherwise(network, photo):
    own = network.seeing("own")
    assert str(network.sees) == "64x128" and own.sees.given((90, 70)) == (90, 70)
    assert (own(photo) != network(photo)).any()
    half = network.seeing(dtype="bfloat16")
    assert half.dtype == "bfloat16" and (half(photo) == network(photo)).mean() > 0.9


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 5)), np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8), np.zeros(3, np.uint8)],
)
def test_what_is_no_image_is_told_what_one_is(network, image):
    with pytest.raises(
        ValueError, match=r"an image is .*; give uint8 \[h, w, 3\] or \[b, h, w, 3\]"
    ):
        network(image)


def test_an_overlay_is_of_one_image(network, photo):
    with pytest.raises(ValueError, match=r"takes one image \[h, w, 3\], not \(2, 90, 70, 3\)"):
        network.overlay(np.stack([photo, photo]))


def test_a_place_that_holds_no_network(tmp_path, network):
    with pytest.raises(FileNotFoundError, match="net.safetensors: no such folder or file"):
        rtseg_jax.load(tmp_path / "net.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        rtseg_jax.load(tmp_path / "empty")
    bundle.save(tmp_path / "other.safetensors", {"params": {"a": np.zeros(1)}}, {}, classes=[])
    facts = bundle.load(tmp_path / "other.safetensors")[1]
    assert (facts["config"], facts["classes"]) == ({}, [])


def test_a_network_is_built_by_name():
    assert rtseg_jax.create("asap", num_classes=5).num_classes == 5
    with pytest.raises(ValueError, match="did you mean 'asap'"):
        rtseg_jax.create("asapp", num_classes=5)


def test_what_a_view_is_given_and_shows():
    view = networks.View(multiple=32)
    assert view.given((50, 90)) == (64, 96) and view.seen((64, 96)) == (64, 96)
    assert json.loads(json.dumps(str(view))) == "frames of up to 2097152 pixels"
