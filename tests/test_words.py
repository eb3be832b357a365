"""Phrases that were mended as a kind do not return to the package, the recipes, the sweeps and the pages."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

_ROOT = Path(__file__).parents[1]
_PLACES = (
    "cm_lightning/**/*.py",
    "cm_lightning/**/*.md",
    "experiments/**/*.yaml",
    "experiments/**/*.py",
    "experiments/**/*.md",
    "sweeps/*",
    "*.md",
)


class Phrase(NamedTuple):
    """A pattern over text without line breaks, a case of it, and a sentence that says the same well."""

    pattern: str
    wrong: str
    right: str


_PHRASES = (
    # English has no distributive article between two nouns: it says "per", "for each" or "each".
    # Only units of time and weight ("twice a day") take the article.
    Phrase(
        r"\b(?:a|one) (?:row|column|file|line|cell|run|process|trial|agent|thread|colour|rank|step) an? "
        r"(?:sample|class|network|image|trial|core|node|job|run|split|method|setting|GPU|rank|step|agent)\b",
        "the text of each sample, a row a sample",
        "the text of the samples, one row for each",
    ),
    # A rate is "per second" in the field, and in the names of the logged metrics.
    # The article also reads as the start of another noun ("images a second of which").
    Phrase(r"\b(?:images|steps|samples|tokens) a second\b", "502 images a second", "502 images per second"),
    # A definition is denied with "is not a", and a possession with "does not have".
    # "It is no text" is emphatic: the reader looks for a reproach. "There is no file" is right.
    Phrase(
        r"(?<![Tt]here )\b(?:is|are) no (?!longer|more|guidance|other|such|better|worse|problem)[a-zA-Z]+",
        "the file is no CSV table",
        "the file is not a CSV table, and there is no other",
    ),
    # A docstring is read without the name above it: it has a verb or a noun as its head.
    # "Of an image, the mean over seeds" has to be read twice.
    Phrase(r'"""Of ', '"""Of an image, the mean over seeds."""', '"""The mean over seeds, for each image."""'),
    # An entry of Args is read in a table of help, beside a type: it has a head of its own too.
    # "width: of the output" needs the name of the option as its first word.
    Phrase(
        r"(?:^| )(?:\w+, )*\w+: of (?:the|a|an|its|their|both|all)\b(?= )", "width: of the output", "width: its width"
    ),
    # A network is conditioned on an input or takes it; it neither hears nor is told it.
    # The metaphor hides whether the number is an input, a label or a setting.
    Phrase(
        r"\b(?:hears|hear) (?:w|t|text)\b|\b(?:is|was|are) told (?:t|w|two|its guidance|the guidance|\d)\b",
        "a student that is told the guidance",
        "a student that takes the guidance as an input",
    ),
    # A run is resumed or continues; "goes on from" was used for checkpoints, steps and options alike.
    # One word for one thing: the option is --resume, the callback Resumed.
    Phrase(r"\b(?:goes|go|went|going) on (?:from|with)\b", "the run goes on from it", "the run is resumed from it"),
    # The network that scores digits is a classifier, in names too: MnistClassifier, train-classifier.
    # A judge sounds like an authority, but it is one extractor of features among others.
    Phrase(r"[Jj]udge", "as the judge sees it", "as the classifier finds; train-classifier"),
    # Classes, files and options differ or are distinguished; nobody tells them.
    # The idiom also splits: the reader meets "apart" a line later.
    Phrase(r"\b(?:told|tells?|telling) (?:\w+ ){0,5}apart\b", "runs are told apart", "runs are distinguished"),
    # An edited image is redrawn, and noise is redrawn between steps; "anew" is of another century.
    # The split verb also hides what is drawn between its halves.
    Phrase(r"\b(?:draws?|drawn|drawing) (?:\w+ ){0,4}anew\b", "the frame is drawn anew", "the frame is redrawn"),
    # Options that exclude each other cannot be combined, as the messages of argparse's users say.
    # "Exclude" sounds as if one of them removed the other.
    Phrase(r"\bexcludes? each other\b", "a and b exclude each other", "a and b cannot be combined"),
    # What began in the past and lasts is in the perfect: "has not been finite since step 5".
    # With the present tense "since" reads as a reason.
    Phrase(r"\bis not finite since\b", "the loss is not finite since step 5", "it has not been finite since step 5"),
)

#: A history quotes what was.
_HISTORY = {"CHANGELOG.md"}


def _flowing(text: str) -> str:
    """Text without line breaks and the marks of comments, so that phrases are found across lines."""
    return re.sub(r"\s*\n\s*(?:#:?\s+)?", " ", text)


def _files() -> list[Path]:
    found = {path.relative_to(_ROOT) for place in _PLACES for path in _ROOT.glob(place) if path.is_file()}
    return sorted(path for path in found if path.as_posix() not in _HISTORY)


@pytest.mark.parametrize("phrase", _PHRASES, ids=lambda phrase: phrase.wrong[:30])
def test_the_pattern_finds_the_phrase_and_not_its_remedy(phrase):
    broken = phrase.wrong.replace(" ", "\n    # ", 1) if not phrase.wrong.startswith('"') else phrase.wrong

    assert re.search(phrase.pattern, phrase.wrong)
    assert re.search(phrase.pattern, _flowing(broken))
    assert not re.search(phrase.pattern, phrase.right)


def test_no_file_has_one_of_the_phrases():
    files = _files()
    texts = {path: _flowing((_ROOT / path).read_text(encoding="utf-8")) for path in files}
    found = [
        f"{path}: {text[max(0, match.start() - 40) : match.end() + 30]}"
        for path, text in texts.items()
        for phrase in _PHRASES
        for match in re.finditer(phrase.pattern, text)
    ]

    assert len(files) > 200  # else the places are wrong
    assert not found, "\n".join(found)
