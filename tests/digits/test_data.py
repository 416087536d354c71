"""The digits: what is in them, how they are scaled and drawn, and that damaged or foreign files are named."""

import functools
import gzip
import hashlib
import http.server
import struct
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toyld.checked import BadInput
from toyld.digits import data as digits
from toyld.digits.data import FILES, Source, download, draw, embedded, flipped, mnist

IMAGES, LABELS = 5 * np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.arange(3, dtype=np.uint8)
TINY = {name: IMAGES if "images" in name else LABELS for name in FILES}  # contents of small files of the same names


def idx(array, *, kind=8):
    """An array of bytes as an idx file."""
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def publish(monkeypatch, contents):
    """Let these be the contents that are known; the .gz of each."""
    packed = {name: gzip.compress(held, mtime=0) for name, held in contents.items()}
    known = {
        name: Source(len(held), hashlib.md5(held).hexdigest(), hashlib.md5(packed[name]).hexdigest())
        for name, held in contents.items()
    }
    monkeypatch.setattr(digits, "FILES", known)
    return packed


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Four small files: images packed, labels plain."""
    contents = {name: idx(array) for name, array in TINY.items()}
    packed = publish(monkeypatch, contents)
    for name, held in contents.items():
        if "images" in name:
            (tmp_path / f"{name}.gz").write_bytes(packed[name])
        else:
            (tmp_path / name).write_bytes(held)
    return tmp_path


# --- the embedded digits --------------------------------------------------------------------------------------------


def test_the_embedded_digits_are_scikit_learns_with_every_fifth_of_a_class_held_out():
    from sklearn.datasets import load_digits

    found, mine = load_digits(), embedded()
    order = [np.flatnonzero(found.target == label) for label in range(10)]
    held = np.sort(np.concatenate([own[4::5] for own in order]))
    rest = np.setdiff1d(np.arange(1797), held)
    for images, labels, at in ((mine.images, mine.labels, rest), (mine.test_images, mine.test_labels, held)):
        np.testing.assert_array_equal(labels.numpy(), found.target[at])
        # float32 of numbers up to 2, scaled there and back
        np.testing.assert_allclose(mine.pixels(images)[:, 0].numpy(), found.images[at] / 16, atol=4 * 2**-23)
    assert abs(mine.images.mean().item()) < 1e-5
    assert mine.images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert (mine.images.dtype, mine.labels.dtype, mine.side) == (torch.float32, torch.int64, 8)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.data(), st.integers(0, 2**31 - 1))
def test_each_class_has_its_share_of_a_subset_up_to_one(labels, more, seed):
    labels = np.array(labels)
    n = more.draw(st.integers(1, len(labels)))
    at = draw(labels, n, seed=seed)
    assert len(at) == n
    assert (np.diff(at) > 0).all()
    share = np.bincount(labels, minlength=5) * n / len(labels)
    assert (abs(np.bincount(labels[at], minlength=5) - share) <= 1).all()


def test_subsets_have_random_numbers_of_their_own():
    before = torch.get_rng_state()
    one, again, other = (embedded().subset(300, seed=seed) for seed in (1000, 1000, 1001))
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, other.images)
    assert torch.equal(one.test_images, embedded().test_images)
    assert torch.equal(before, torch.get_rng_state())
    places = draw(embedded().labels.numpy(), 300, seed=1000, stream=9)
    assert not np.array_equal(places, draw(embedded().labels.numpy(), 300, seed=1000))


@pytest.mark.parametrize("n", [0, -1, 1443])
def test_a_subset_larger_than_the_digits_is_refused(n):
    with pytest.raises(BadInput, match=rf"^images: expected 1 to 1442, got {n};"):
        embedded().subset(n, seed=0)


@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 1000))
def test_a_share_of_the_labels_is_flipped_to_other_ones(n, share, seed):
    labels = np.arange(n) % 10
    noisy = flipped(labels, share, seed=seed)
    assert (noisy != labels).sum() == round(share * n)
    assert set(noisy) <= set(range(10))
    assert (labels == np.arange(n) % 10).all(), "the labels given stay as they are"
    np.testing.assert_array_equal(noisy, flipped(labels, share, seed=seed))


def test_flipped_labels_are_each_of_the_others_alike():
    counts = np.bincount(flipped(np.full(9000, 3), 1.0, seed=1000), minlength=10)
    assert counts[3] == 0
    # χ² of nine cells; 31.8 is passed once in 10,000 by chance, and the seed is fixed
    assert ((np.delete(counts, 3) - 1000) ** 2 / 1000).sum() < 31.8


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_all_labels_is_refused(share):
    with pytest.raises(BadInput, match=r"^noise: expected a share from 0 to 1"):
        flipped(np.zeros(3, int), share, seed=0)


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_packed_or_plain_hold_what_was_written(folder):
    found = mnist(folder)
    pixels = TINY["train-images-idx3-ubyte"].astype(float) / 255
    np.testing.assert_allclose(found.pixels(found.images)[:, 0].numpy(), pixels, atol=4 * 2**-23)
    assert found.labels.tolist() == found.test_labels.tolist() == [0, 1, 2]
    assert (found.mean, found.std) == (pytest.approx(pixels.mean()), pytest.approx(pixels.std()))
    assert (found.name, found.images.shape) == ("mnist", (3, 1, 4, 4))


def test_the_folder_may_be_the_one_that_the_environment_names(folder, tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mnist").symlink_to(folder, target_is_directory=True)
    monkeypatch.setenv("TOYLD_DATA", str(tmp_path / "root"))
    assert torch.equal(mnist().images, mnist(folder).images)
    monkeypatch.delenv("TOYLD_DATA")
    with pytest.raises(BadInput, match=r"^expected a folder with MNIST, got none; name it, set TOYLD_DATA, or"):
        mnist()


def damage(folder, what):
    """Spoil the training images; the words of the complaint."""
    file = folder / "train-images-idx3-ubyte.gz"
    held = gzip.decompress(file.read_bytes())
    if what == "missing":
        file.unlink()
        return r"expected train-images-idx3-ubyte or its .gz in .*, got neither"
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-12])
        return r"expected a whole gzip file, got train-images-idx3-ubyte.gz \(EOFError\); fetch it again"
    if what == "empty":
        file.write_bytes(b"")
        return r"expected 64 bytes with md5 .* in train-images-idx3-ubyte.gz, got 0 bytes"
    if what == "not packed":
        file.write_bytes(held)
        return r"expected a whole gzip file, got train-images-idx3-ubyte.gz \(BadGzipFile\)"
    if what == "damaged inside":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 255
        file.write_bytes(raw)
        return r"expected .*train-images-idx3-ubyte.gz"
    if what == "other bytes":
        file.write_bytes(gzip.compress(held[:-1] + b"\x07"))
        return (
            r"expected 64 bytes with md5 \w{32} in train-images-idx3-ubyte.gz, got 64 bytes with \w{32}; fetch it again"
        )
    if what == "short":
        file.write_bytes(gzip.compress(held[:-1]))
        return r"expected 64 bytes .* got 63 bytes"
    file.write_bytes(gzip.compress(held + bytes(10**7)))
    return r"expected 64 bytes with md5 \w{32} in train-images-idx3-ubyte.gz, got more with"


KINDS = ["missing", "cut", "empty", "not packed", "damaged inside", "other bytes", "short", "endless"]


@pytest.mark.parametrize("what", KINDS)
def test_a_damaged_file_is_named_in_one_line(folder, what):
    words = damage(folder, what)
    with pytest.raises(BadInput, match=words) as found:
        mnist(folder)
    assert "\n" not in str(found.value)


def test_a_plain_file_cut_short_is_named(folder):
    file = folder / "train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"expected 11 bytes .* in train-labels-idx1-ubyte, got 10 bytes"):
        mnist(folder)


@pytest.mark.parametrize(
    ("name", "held", "words"),
    [
        (
            "train-images-idx3-ubyte",
            idx(np.zeros((3, 4, 4), np.uint8), kind=13),
            "an idx file of bytes, got header 00000d",
        ),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x04abc", "an idx file of bytes, got header 00000801"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x09\0\0\0\x04abc", "an idx file of bytes"),
        ("train-labels-idx1-ubyte", b"\0\0", "an idx file of bytes, got header 0000 "),
        (
            "t10k-labels-idx1-ubyte",
            idx(np.zeros(2, np.uint8)),
            r"as many images as labels, got \(3, 4, 4\) and \(2,\)",
        ),
        ("t10k-images-idx3-ubyte", idx(LABELS), r"as many images as labels, got \(3,\) and \(3,\)"),
        ("t10k-labels-idx1-ubyte", idx(np.array([0, 1, 77], np.uint8)), "labels 0 to 9, got 77"),
    ],
    ids=["floats", "too short", "axes behind the end", "two bytes", "a label missing", "no images", "label 77"],
)
def test_contents_that_are_no_digits_are_refused_whatever_their_sum(folder, monkeypatch, name, held, words):
    known = {**digits.FILES, name: Source(len(held), hashlib.md5(held).hexdigest(), "")}
    monkeypatch.setattr(digits, "FILES", known)
    for file in (folder / name, folder / f"{name}.gz"):
        file.unlink(missing_ok=True)
    (folder / name).write_bytes(held)
    with pytest.raises(BadInput, match=f"expected {words}"):
        mnist(folder)


# --- download -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A mirror on this machine that serves a folder; its address, the folder, and what was asked for."""
    folder, asked = tmp_path / "served", []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    here = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=here.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{here.server_port}/", folder, asked
    here.shutdown()
    thread.join()
    here.server_close()


def test_a_download_is_checked_and_kept(server, monkeypatch, tmp_path):
    mirror, folder, asked = server
    for name, packed in publish(monkeypatch, {name: idx(array) for name, array in TINY.items()}).items():
        (folder / f"{name}.gz").write_bytes(packed)
    (folder / "bad").mkdir()
    for name in FILES:
        (folder / "bad" / f"{name}.gz").write_bytes(b"something else")
    found = download(tmp_path / "cache", mirrors=[f"{mirror}none/", f"{mirror}bad/", mirror])
    assert found.labels.tolist() == [0, 1, 2]
    tried = dict.fromkeys(path.split("/")[1] for path in asked)
    assert list(tried) == ["none", "bad", *(f"{name}.gz" for name in FILES)], "one mirror after the other"
    asked.clear()
    assert torch.equal(download(tmp_path / "cache", mirrors=[mirror]).images, found.images)
    assert asked == [], "what is there is not fetched again"
    with pytest.raises(BadInput, match=r"expected train-images.* from a mirror, got ValueError from .*bad/"):
        download(tmp_path / "other", mirrors=[f"{mirror}bad/"])
    assert not list((tmp_path / "other").glob("*.gz"))


# --- the real files -------------------------------------------------------------------------------------------------


def test_the_real_mnist_is_the_published_one(real):
    assert (real.images.shape, real.test_images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    # Counts of each class, as known of this data set since LeCun et al. (1998)
    assert real.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert real.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (round(real.mean, 4), round(real.std, 4)) == (0.1307, 0.3081)
    assert real.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_the_sums_of_the_packed_files_are_those_published(data):
    sums = {
        name: hashlib.md5((data / "mnist" / f"{name}.gz").read_bytes()).hexdigest() == of.packed
        for name, of in FILES.items()
    }
    del sums["train-images-idx3-ubyte"]  # may have been packed again: what it holds is checked
    assert all(sums.values()), sums
