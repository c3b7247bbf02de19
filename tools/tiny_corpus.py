"""The text that the shipped model `tiny` learns from; `train_tiny.py` calls this.

Everything comes from the Python that runs this file: docstrings and comments of the standard
library's sources, docstrings of its C modules, and the language reference's topics as `help()`
shows them. Only paragraphs that read like English are kept: the model shall speak prose that
ends, so each document is a few whole paragraphs.
"""

import ast
import builtins
import importlib
import inspect
import io
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

# Tests, bundled wheels, tables, and tools that nobody asks a small model about.
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "lib2to3", "encodings", "idlelib", "_bundled"}
SKIPPED_FOLDERS |= {"turtledemo", "msilib", "__phello__", "pydoc_data", "distutils", "tkinter"}
SKIPPED_MODULES = {"turtle", "_pydecimal", "_osx_support", "_aix_support"}
C_MODULES = """
    array atexit binascii builtins cmath errno fcntl gc grp itertools marshal math mmap posix
    pwd resource select signal sys syslog termios time unicodedata zlib
"""
# Where a member is defined, and the name that everybody calls it by.
PUBLIC_NAMES = {
    "_pyio": "io",
    "_pydatetime": "datetime",
    "_collections_abc": "collections.abc",
    "genericpath": "os.path",
    "posixpath": "os.path",
    "posix": "os",
}
FLAT_PACKAGES = {"asyncio", "concurrent.futures", "json", "unittest", "multiprocessing"}
# What people try first comes more often in an epoch, so that its answers are learnt by heart.
COMMON_MODULES = """
    os sys math time json re random itertools functools collections asyncio threading
    pathlib string textwrap datetime statistics shutil queue logging subprocess
"""
COMMON_NAMES = set(dir(builtins)) | set(COMMON_MODULES.split())
COMMON_REPEATS = 4
PARAGRAPHS_PER_DOCUMENT = (1, 1, 1, 2, 2, 3, 3, 20)
PARAGRAPH_CHARACTERS = range(18, 700)
ANSWER_CHARACTERS = range(18, 420)

QUESTIONS = {
    "function": (
        "What does {0} do?",
        "What does `{0}` do?",
        "Explain {0}.",
        "What is {0} for?",
        "Describe the function {0}.",
        "Tell me about {0}.",
    ),
    "class": (
        "What is {0}?",
        "What is `{0}`?",
        "Explain {0}.",
        "What is the class {0} for?",
        "Describe {0}.",
        "Tell me about {0}.",
    ),
    "module": (
        "What is the {0} module for?",
        "What is the module {0}?",
        "What does the {0} module do?",
        "Explain the {0} module.",
        "Describe the module {0}.",
        "Tell me about the {0} module.",
    ),
    "topic": (
        "What is {0}?",
        "Explain {0}.",
        "Describe {0}.",
        "Tell me about {0}.",
        "How does {0} work?",
        "What can you say about {0}?",
    ),
}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in one sentence.",
    "You explain the Python standard library.",
    "Answer briefly.",
)


@dataclass(frozen=True)
class Answer:
    """A question's subject and the paragraph that answers it."""

    kind: str
    subject: str
    text: str

    @property
    def repeats(self) -> int:
        """How often an epoch shows it."""
        common = self.kind in ("module", "topic") or self.subject.split(".")[0] in COMMON_NAMES
        return COMMON_REPEATS if common else 1

    def question(self, random: Random) -> str:
        return random.choice(QUESTIONS[self.kind]).format(self.subject)


@dataclass
class Corpus:
    """`sources`: each a list of paragraphs in their order. `answers`: unique by subject."""

    sources: list[list[str]] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def add(self, paragraphs: list[str]) -> None:
        fresh = [p for p in paragraphs if p not in self.seen]
        self.seen.update(fresh)
        if fresh:
            self.sources.append(fresh)

    def add_docstring(self, kind: str, subject: str, docstring: str) -> None:
        paragraphs = prose(docstring)
        self.add(paragraphs)
        answer = first_paragraph(docstring)
        if answer and subject not in self.answers and public(subject):
            self.answers[subject] = Answer(kind, subject, answer)

    def documents(self, random: Random) -> Iterator[str]:
        """Every paragraph once, in short runs that differ from epoch to epoch."""
        for paragraphs in self.sources:
            start = 0
            while start < len(paragraphs):
                length = random.choice(PARAGRAPHS_PER_DOCUMENT)
                yield "\n\n".join(paragraphs[start : start + length])
                start += length

    def conversations(self, random: Random) -> Iterator[list[dict[str, str]]]:
        """Every answer, as messages; some with a system message, some with more turns."""
        answers = [a for a in self.answers.values() for _ in range(a.repeats)]
        random.shuffle(answers)
        while answers:
            messages = []
            if random.random() < 0.25:
                messages.append({"role": "system", "content": random.choice(SYSTEM_PROMPTS)})
            for _ in range(random.choice((1, 1, 1, 2, 3))):
                if answers:
                    answer = answers.pop()
                    messages.append({"role": "user", "content": answer.question(random)})
                    messages.append({"role": "assistant", "content": answer.text})
            yield messages


def collect() -> Corpus:
    """The corpus of the running Python, the same for the same Python."""
    corpus = Corpus()
    for module in C_MODULES.split():
        _add_c_module(corpus, module)
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts[:-1]
        skipped = any(f in SKIPPED_FOLDERS or f.startswith("config-") for f in folders)
        if not skipped and path.stem not in SKIPPED_MODULES:
            _add_source(corpus, ".".join((*folders, path.stem)), path)
    _add_topics(corpus)
    return corpus


def prose(text: str) -> list[str]:
    """The paragraphs of `text` that read like English, each on one line."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", inspect.cleandoc(text)))
    return [p for p in map(_polished, paragraphs) if reads_like_prose(p)]


def first_paragraph(docstring: str) -> str | None:
    """What a docstring says first, None when that is not a sentence of an answer's length."""
    paragraphs = prose(_without_signature(docstring))
    if not paragraphs:
        return None
    answer = paragraphs[0]
    if len(answer) > ANSWER_CHARACTERS.stop:
        sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", answer)
        answer = ""
        for sentence in sentences:
            if answer and len(answer) + len(sentence) > 250:
                break
            answer = f"{answer} {sentence}".strip()
    return answer if len(answer) in ANSWER_CHARACTERS and answer[-1] in ".!?" else None


def reads_like_prose(paragraph: str) -> bool:
    if len(paragraph) not in PARAGRAPH_CHARACTERS or paragraph[-1] not in ".!?":
        return False
    if not (paragraph[0].isupper() or paragraph[0] in "\"'`"):
        return False
    if any(mark in paragraph for mark in (">>>", "::=", "~~", "--+", "====", "****", " = ", "XXX")):
        return False
    plain = sum(c.isalpha() or c in " ,.'" for c in paragraph)
    return plain / len(paragraph) > 0.93 and paragraph.count(" ") >= 2


def public(subject: str) -> bool:
    return not any(part.startswith("_") for part in subject.split("."))


def public_module(module: str) -> str:
    package = module.rpartition(".")[0]
    return package if package in FLAT_PACKAGES else PUBLIC_NAMES.get(module, module)


def _polished(paragraph: str) -> str:
    """One style for quotes of code, and a full stop where a summary line forgot it."""
    paragraph = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", paragraph).replace("``", "`")
    paragraph = re.sub(r"`([^`']+)'", r"'\1'", paragraph)
    if len(paragraph) > 25 and (paragraph[-1].isalnum() or paragraph[-1] == ")"):
        paragraph += "."
    return paragraph


def _without_signature(docstring: str) -> str:
    """C docstrings and some old ones start with `name(arguments) -> result`."""
    lines = inspect.cleandoc(docstring).split("\n")
    while lines and (re.match(r"^[\w.]+ ?\(.*(\)|->.*)", lines[0]) or not lines[0].strip()):
        lines[0] = re.sub(r"^[\w.]+ ?\([^)]*\)( *->.*)?( *-- *|[:.]?)", "", lines[0]).strip()
        if lines[0]:
            break
        del lines[0]
    if lines and lines[0][:1].islower():
        lines[0] = lines[0][0].upper() + lines[0][1:]
    return "\n".join(lines)


def _add_c_module(corpus: Corpus, name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError:  # an optional one that this Python was built without
        return
    public_name = PUBLIC_NAMES.get(name, name)
    prefix = "" if name == "builtins" else f"{public_name}."
    if prefix and name != "posix":
        corpus.add_docstring("module", public_name, module.__doc__ or "")
    for member, value in sorted(vars(module).items()):
        if not callable(value) or (inspect.isclass(value) and issubclass(value, Warning)):
            continue
        kind = "class" if inspect.isclass(value) else "function"
        corpus.add_docstring(kind, prefix + member, value.__doc__ or "")
        if kind == "class" and not issubclass(value, BaseException):
            for method, function in sorted(vars(value).items()):
                if callable(function) and not method.startswith("_"):
                    text = function.__doc__ or ""
                    corpus.add_docstring("function", f"{prefix}{member}.{method}", text)


def _add_source(corpus: Corpus, module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old sources are not ours to mend
        tree = ast.parse(source)
    module = module.removesuffix(".__init__")
    if text := ast.get_docstring(tree):
        corpus.add_docstring("module", module, text)
    _add_members(corpus, public_module(module), tree)
    for comment in _comments(source):
        corpus.add(prose(comment))


def _add_members(corpus: Corpus, prefix: str, node: ast.AST) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{child.name}"
            kind = "class" if isinstance(child, ast.ClassDef) else "function"
            if text := ast.get_docstring(child):
                corpus.add_docstring(kind, name, text)
            _add_members(corpus, name, child)


def _comments(source: str) -> Iterator[str]:
    """Comments on consecutive lines are one text."""
    lines: list[str] = []
    last_row = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or not token.line.lstrip().startswith("#"):
            continue
        if token.start[0] != last_row + 1:
            yield "\n".join(lines)
            lines = []
        lines.append(token.string.lstrip("#!").removeprefix(" "))
        last_row = token.start[0]
    yield "\n".join(lines)


def _add_topics(corpus: Corpus) -> None:
    """`help("assert")` and its like: titles underlined with stars, then reflowed prose."""
    topics = importlib.import_module("pydoc_data.topics").topics
    for text in topics.values():
        title, _, body = text.partition("\n")
        paragraphs = prose(re.sub(r"\n[*=\-]{3,}\n", "\n\n", body))
        corpus.add(paragraphs)
        subject = title.strip().replace('"', "")
        if paragraphs and len(paragraphs[0]) in ANSWER_CHARACTERS and 3 < len(subject) < 50:
            subject = subject[0].lower() + subject[1:]
            corpus.answers.setdefault(subject, Answer("topic", subject, paragraphs[0]))
