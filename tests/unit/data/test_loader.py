"""What a replica reads of a step: exact on any number of replicas, from any stop on, for any mixture."""

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataset import make_dataset
from toolkit.data.loader import PrefetchingLoader, StepLoader, open_streams
from toolkit.data.manifest import ShardEntry
from toolkit.data.mixture import count_dealt, open_members
from toolkit.data.shard import write_shard
from toolkit.data.skips import Skips
from toolkit.data.stream import TokenStream, locate_in
from toolkit.errors import DataError
from toolkit.topology import BatchShape


@dataclasses.dataclass(frozen=True)
class Case:
    """Datasets on disk and how they are read; the tokens of dataset d start at 10,000 * d and count up."""

    streams: list[TokenStream]
    shares: list[float]
    seq_len: int
    samples_per_step: int
    seed: int
    shuffle: bool
    replica_split: str

    def loader(self, *, replicas: int, micro_batch: int) -> StepLoader:
        shape = BatchShape(samples_per_step=self.samples_per_step, micro_batch=micro_batch, replicas=replicas)
        return StepLoader(
            self.streams,
            shares=self.shares,
            seq_len=self.seq_len,
            batch=shape,
            seed=self.seed,
            shuffle=self.shuffle,
            replica_split=self.replica_split,  # type: ignore[arg-type]
            document_end=None,
            pin_memory=False,
        )

    def read(self, step: int, *, replicas: int, micro_batch: int) -> list[tuple[int, ...]]:
        """Give the rows of a step, the last label included, in the order of replicas and micro-batches."""
        loader = self.loader(replicas=replicas, micro_batch=micro_batch)
        batches = [pair for replica in range(replicas) for pair in loader.micro_batches(step, replica=replica)]
        assert {tuple(tensor.shape) for pair in batches for tensor in pair} == {(micro_batch, self.seq_len)}
        assert all(tokens[:, 1:].equal(labels[:, :-1]) for tokens, labels in batches)
        return [tuple(row) for tokens, labels in batches for row in torch.cat((tokens, labels[:, -1:]), 1).tolist()]


@st.composite
def cases(draw: st.DrawFn, directory: Path) -> Case:
    seq_len = draw(st.integers(1, 12))
    streams = []
    for number in range(draw(st.integers(1, 3))):
        sizes = draw(st.lists(st.integers(0, 40), max_size=4))
        sizes.append(draw(st.integers(seq_len + 1, 60)))
        cuts = np.split(10_000 * number + np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        folder = Path(tempfile.mkdtemp(dir=directory))
        shards = [write_shard(folder / f"{i}", [cut], dtype="uint16", name=f"{i}") for i, cut in enumerate(cuts)]
        streams.append(TokenStream(shards, locate_in(str(folder)), dtype="uint16", max_mapped=draw(st.integers(1, 4))))
    weights = [draw(st.floats(0.1, 10)) for _ in streams]
    return Case(
        streams=streams,
        shares=[weight / sum(weights) for weight in weights],
        seq_len=seq_len,
        samples_per_step=draw(st.sampled_from([4, 8, 12])),
        seed=draw(st.integers(0, 99)),
        shuffle=draw(st.booleans()),
        replica_split=draw(st.sampled_from(["index", "hash"])),
    )


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_a_stopped_run_on_other_replicas_reads_what_an_uninterrupted_one_reads(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        case = data.draw(cases(Path(directory)))
        num_steps = data.draw(st.integers(1, 8))
        whole = [sorted(case.read(step, replicas=1, micro_batch=1)) for step in range(num_steps)]
        stops = sorted(data.draw(st.lists(st.integers(0, num_steps), max_size=3)))
        pieces = []
        for first, last in zip([0, *stops], [*stops, num_steps], strict=True):
            replicas = data.draw(st.sampled_from([1, 2, 4]))
            micro_batch = data.draw(
                st.sampled_from([n for n in (1, 2, 3) if case.samples_per_step // replicas % n == 0])
            )
            case = dataclasses.replace(case, replica_split=data.draw(st.sampled_from(["index", "hash"])))
            pieces += [
                sorted(case.read(step, replicas=replicas, micro_batch=micro_batch)) for step in range(first, last)
            ]
        assert pieces == whole


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_every_sample_of_every_dataset_is_read_once_an_epoch(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        case = data.draw(cases(Path(directory)))
        replicas = data.draw(st.sampled_from([1, 2, 4]))
        num_samples = case.loader(replicas=1, micro_batch=1).num_samples
        num_steps = min(40, 1 + 2 * sum(num_samples) // case.samples_per_step)
        rows = [row for step in range(num_steps) for row in case.read(step, replicas=replicas, micro_batch=1)]
        counts = count_dealt(num_steps * case.samples_per_step, shares=case.shares)
        for member, (count, per_epoch) in enumerate(zip(counts, num_samples, strict=True)):
            seen = Counter(row for row in rows if row[0] // 10_000 == member)
            starts = [10_000 * member + index * case.seq_len for index in range(per_epoch)]
            assert {row[0] for row in seen} <= set(starts)
            assert all(row == tuple(range(row[0], row[0] + case.seq_len + 1)) for row in seen)
            # Whole epochs are complete, the one in work holds nothing twice.
            times = [seen[tuple(range(start, start + case.seq_len + 1))] for start in starts]
            assert sum(times) == count
            assert set(times) <= {count // per_epoch, -(-count // per_epoch)}


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_a_cache_is_told_of_shards_in_the_order_of_their_first_use(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        case = data.draw(cases(Path(directory)))
        loader = case.loader(replicas=1, micro_batch=1)
        step = data.draw(st.integers(0, 20))
        ahead = loader.shards_ahead(step)
        firsts: list[list[int]] = [[] for _ in case.streams]
        coming = [loader.choose(number, replica=0) for number in range(step, step + 3)]
        pairs = [pair for members, samples in coming for pair in zip(members.tolist(), samples.tolist(), strict=True)]
        for member, sample in pairs[: sum(loader.num_samples)]:
            firsts[member].append(sample * case.seq_len)
        for entries, stream, starts in zip(ahead, case.streams, firsts, strict=True):
            corpus = stream.shards_from(0, seq_len=1)
            assert Counter(entries) == Counter(stream.shards_of(np.arange(0), seq_len=1))
            used = [first_shard(corpus, start) for start in starts]
            assert list(dict.fromkeys(used)) == [entry for entry in entries if entry in used]


def first_shard(corpus: tuple[ShardEntry, ...], start: int) -> ShardEntry:
    for entry in corpus:
        if start < entry.num_tokens:
            return entry
        start -= entry.num_tokens
    raise AssertionError("beyond the end")


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> StepLoader:
    dataset, _ = make_dataset(tmp_path_factory.mktemp("loader"))
    return make_loader(dataset)


def make_loader(dataset: Path, *, document_end: int | None = None) -> StepLoader:
    return StepLoader(
        open_streams(open_members({str(dataset): 1.0}), "train", seq_len=32, locate_in=locate_in, max_mapped=9),
        shares=[1.0],
        seq_len=32,
        batch=BatchShape(samples_per_step=16, micro_batch=4, replicas=2),
        seed=5,
        shuffle=True,
        replica_split="index",
        document_end=document_end,
        pin_memory=False,
    )


def test_a_run_knows_how_often_it_reads_each_dataset(loader: StepLoader) -> None:
    num_steps = 3 * loader.num_samples[0]
    assert loader.count_epochs(num_steps) == [48.0]


def test_prefetched_steps_are_the_steps_asked_for(loader: StepLoader) -> None:
    ahead = PrefetchingLoader(loader, replica=1, device=torch.device("cpu"))
    for step in (7, 8, 9, 3, 4, 4):
        for ours, plain in zip(ahead.micro_batches(step), loader.micro_batches(step, replica=1), strict=True):
            assert ours[0].equal(plain[0])
            assert ours[1].equal(plain[1])
    ahead.close()


def test_a_loader_told_to_skip_reads_what_comes_after_on_any_number_of_replicas(tmp_path: Path) -> None:
    dataset, _ = make_dataset(tmp_path)
    plain = make_loader(dataset)
    skips = Skips([(3 * 16, 4 * 16), (5 * 16 + 3, 5 * 16 + 5)])
    ahead = PrefetchingLoader(plain, replica=1, device=torch.device("cpu"))
    ahead.micro_batches(2)  # step 3 is being read ahead
    ahead.skip(skips)
    for ours, other in zip(ahead.micro_batches(3), plain.micro_batches(4, replica=1), strict=True):
        assert ours[0].equal(other[0])
    ahead.close()
    skipping = plain.skipping(skips)
    members, samples = plain.samples_at(5 * 16, 7 * 16)
    kept = np.delete(samples, [3, 4])[:16]
    assert np.concatenate([skipping.choose(4, replica=replica)[1] for replica in (0, 1)]).tolist() == kept.tolist()
    assert skipping.choose(2, replica=0)[1].tolist() == plain.choose(2, replica=0)[1].tolist()
    assert members.tolist() == [0] * 32


def test_what_the_thread_raises_reaches_the_step_that_needs_it(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    ahead = PrefetchingLoader(make_loader(dataset), replica=0, device=torch.device("cpu"))
    for entry in manifest.splits["train"]:
        (dataset / entry.path).unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        ahead.micro_batches(0)
    ahead.close()


def test_the_thread_ends_with_its_loader(loader: StepLoader) -> None:
    import threading

    ahead = PrefetchingLoader(loader, replica=0, device=torch.device("cpu"))
    ahead.micro_batches(0)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert len(threads) == 1
    ahead.close()
    assert not threads[0].is_alive()


def test_a_member_without_a_whole_sample_is_named(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    members = open_members({str(dataset): 1.0})
    text = f"the train split of {dataset} has {manifest.num_tokens('train')} tokens"
    with pytest.raises(DataError, match=text):
        open_streams(members, "train", seq_len=10**6, locate_in=locate_in, max_mapped=9)


def test_documents_are_numbered_and_the_first_token_of_the_next_is_not_learned(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    end = manifest.tokenizer.eos_id
    plain, masked = make_loader(dataset), make_loader(dataset, document_end=end)
    num_ends = 0
    for (tokens, labels), ((same, documents), learned) in zip(
        plain.micro_batches(2, replica=1), masked.micro_batches(2, replica=1), strict=True
    ):
        assert same.equal(tokens)
        assert documents.dtype == torch.int32
        for row, numbers, wanted, kept in zip(tokens.tolist(), documents.tolist(), labels, learned, strict=True):
            assert numbers == [row[:place].count(end) for place in range(len(row))]
            assert kept.tolist() == [
                -100 if token == end else label for token, label in zip(row, wanted.tolist(), strict=True)
            ]
            num_ends += row.count(end)
    assert num_ends > 0
