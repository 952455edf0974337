"""Every error historay raises on purpose, grouped by what a handler does about it.

    HistorayError
    ├── UsageError               the user mends the command; nothing was started (exit 2)
    │   ├── SettingsError            settings              an unknown key or a value out of range
    │   ├── DuplicateSlideError      duplicate-slide       two slides under one slide_id
    │   ├── OffSpecError             off-spec              a tiling the model was not made for
    │   ├── WeightsError             weights-unavailable   weights not to be had, read or trusted
    │   ├── InexactError             inexact               a faster path gives other vectors
    │   ├── RecipeMismatchError      recipe-mismatch       the output holds another recipe.json
    │   ├── LabelsError              labels                nothing can be learnt from these
    │   ├── DoesNotFitError          does-not-fit          the plan can't fit the cluster
    │   ├── StaleIndexError          stale-index           slides changed since an index was built
    │   └── QueryError               query                 SQL that is wrong, or no mere reading
    ├── ClusterError             cluster               Ray gave up on the job (exit 1)
    ├── StoreError               object storage said no (a slide's row; exit 1 before start)
    │   ├── NotFoundError            not-found             no such object or bucket
    │   ├── AccessError              access-denied         credentials missing or refused
    │   ├── UnreachableError         store-unreachable     no usable answer after all retries
    │   ├── PreconditionError        precondition-failed   a conditional put or get lost
    │   ├── ObjectReplacedError      source-replaced       an object changed while it was read
    │   └── UnsupportedError         unsupported           the store does not know this request
    ├── SlideError               one slide is at fault; its row says so and the job goes on
    │   ├── NotASlideError           not-a-slide           no reader knows these bytes
    │   ├── EmptySlideError          empty-file            an object of zero bytes
    │   ├── DamagedSlideError        damaged-slide         truncated or undecodable pixels
    │   ├── NoMppError               no-mpp                microns per pixel unknown or not credible
    │   ├── TooCoarseError           too-coarse            the finest level is coarser than asked
    │   ├── TooLargeError            too-large             dimensions past the limit: refused unread
    │   ├── LongNameError            long-name             no store's path holds such a slide_id
    │   ├── NormaliseError           not-normalised        no usable colour profile or staining
    │   └── CoordinatesError         bad-coordinates       imported tiles that do not fit the slide
    └── DatasetError             the output and what was to be written disagree
        ├── IncompleteError          incomplete            shards missing at the end of the stream
        ├── StagingLostError         staging-lost          a staged fragment vanished or is damaged
        ├── NotFiniteError           not-finite            an embedding holds NaN or infinity
        ├── CommitConflictError      commit-conflict       another, different file stands there
        ├── SourceChangedError       source-changed        the output was made from another source
        └── DamagedOutputError       damaged-output        a committed file can't be read

`kind` is stable and append-only: it is written to the slides table, and people select
by it (`embed --retry KIND`). Every error takes one positional sentence, so that it
survives pickling between processes, and without the secrets that a URI or a value may have held.
"""

from __future__ import annotations

from typing import ClassVar

from ray_pipeline.redaction import redacted


class HistorayError(Exception):
    """Base of all; `str(error)` is one sentence naming what is wrong and the mend."""

    kind: ClassVar[str] = "internal"

    def __init__(self, sentence: str) -> None:
        super().__init__(redacted(sentence))


class UsageError(HistorayError):
    """The command or its settings must change; nothing was started."""

    kind = "usage"


class SettingsError(UsageError):
    """An unknown key, or a value out of its range."""

    kind = "settings"


class DuplicateSlideError(UsageError):
    """Two slides of one job have the same slide_id."""

    kind = "duplicate-slide"


class OffSpecError(UsageError):
    """A tiling the model was not made for, without `allow_off_spec`."""

    kind = "off-spec"


class WeightsError(UsageError):
    """Weights that can't be found, read, or trusted."""

    kind = "weights-unavailable"


class InexactError(UsageError):
    """A faster way to run a model misses the thresholds of its spec on this machine."""

    kind = "inexact"


class RecipeMismatchError(UsageError):
    """The output already holds a different recipe, or other partition columns."""

    kind = "recipe-mismatch"


class LabelsError(UsageError):
    """Classes, patients and slides with which nothing can be learnt, or fairly tested."""

    kind = "labels"


class DoesNotFitError(UsageError):
    """The actors and task slots of the plan can't be placed on the cluster."""

    kind = "does-not-fit"


class QueryError(UsageError):
    """SQL that can't be answered, or that would do more than read the output."""

    kind = "query"


class StaleIndexError(UsageError):
    """Slides were committed, replaced or removed since an index was built."""

    kind = "stale-index"


class ClusterError(HistorayError):
    """Ray can't be reached, or gave up on the job; a rerun goes on where it stopped."""

    kind = "cluster"


class StoreError(HistorayError):
    """Object storage refused or failed."""

    kind = "store"


class NotFoundError(StoreError):
    """No such object, bucket or folder."""

    kind = "not-found"


class AccessError(StoreError):
    """Credentials are missing, wrong, or not allowed to do this."""

    kind = "access-denied"


class UnreachableError(StoreError):
    """No usable answer after all retries: worth trying again later."""

    kind = "store-unreachable"


class PreconditionError(StoreError):
    """A conditional put or get found another state than it asked for."""

    kind = "precondition-failed"


class ObjectReplacedError(StoreError):
    """An object changed between its listing and a read of it."""

    kind = "source-replaced"


class UnsupportedError(StoreError):
    """The store does not know this kind of request (conditional puts, listing)."""

    kind = "unsupported"


class SlideError(HistorayError):
    """One slide can't be processed; the job goes on without it."""

    kind = "slide"


class NotASlideError(SlideError):
    """No reader knows these bytes."""

    kind = "not-a-slide"


class EmptySlideError(SlideError):
    """The object has zero bytes."""

    kind = "empty-file"


class DamagedSlideError(SlideError):
    """The file is truncated, or its pixels can't be decoded."""

    kind = "damaged-slide"


class NoMppError(SlideError):
    """The slide states no microns per pixel, or none that is credible."""

    kind = "no-mpp"


class TooCoarseError(SlideError):
    """The finest level is coarser than the microns per pixel asked for."""

    kind = "too-coarse"


class TooLargeError(SlideError):
    """Dimensions past the limit; refused before anything is decoded."""

    kind = "too-large"


class LongNameError(SlideError):
    """The slide_id, or its value of a partition column, is too long for a segment of a path."""

    kind = "long-name"


class NormaliseError(SlideError):
    """The colours asked for can't be made: an unusable ICC profile, or no staining to fit."""

    kind = "not-normalised"


class CoordinatesError(SlideError):
    """Imported coordinates that can't be read, or are not of this slide and recipe."""

    kind = "bad-coordinates"


class DatasetError(HistorayError):
    """The output, and what was to be written to it, disagree."""

    kind = "dataset"


class IncompleteError(DatasetError):
    """The stream ended before all shards of a slide arrived."""

    kind = "incomplete"


class StagingLostError(DatasetError):
    """A staged fragment vanished or is damaged, and no output explains it."""

    kind = "staging-lost"


class NotFiniteError(DatasetError):
    """An embedding holds NaN or infinity; nothing is written for its slide."""

    kind = "not-finite"


class CommitConflictError(DatasetError):
    """A different file stands where this slide's output belongs."""

    kind = "commit-conflict"


class SourceChangedError(DatasetError):
    """The committed output was made from another version of the source."""

    kind = "source-changed"


class DamagedOutputError(DatasetError):
    """A committed file is cut short, or none of ours."""

    kind = "damaged-output"


def error_kinds() -> set[str]:
    """The kinds that a slide's row can tell, and that `embed --retry` takes."""

    def tree(error: type[HistorayError]) -> set[str]:
        return {error.kind}.union(*map(tree, error.__subclasses__()))

    return set.union(*map(tree, (ClusterError, StoreError, SlideError, DatasetError)))
