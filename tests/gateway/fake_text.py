"""What fake engines write: the alphabet. Tokens are bytes, so that every expectation can be worked
out by hand."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from distserve.wire.dialect import Finish, Leg, Phases, Token
from distserve.wire.messages import TokenLogprobs

BOS, EOS, VOCAB = 256, 257, 258


def make_tokenizer() -> bytes:
    """One token a byte, ids as the bytes' values."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    vocab = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}
    assert set(vocab) == set(alphabet)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert tokenizer.token_to_id("</s>") == EOS
    return tokenizer.to_str().encode()


def make_spaced_tokenizer() -> bytes:
    """As SentencePiece's: spaces are part of the words after them, and one is put before a text."""
    words = ["<unk>", "▁", "▁▁", "▁▁▁", "▁cat", "cat"]
    tokenizer = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.to_str().encode()


def letter(prompt: list[int], choice: int, index: int) -> int:
    """The token that every instance chooses at this place."""
    return ord("a") + (sum(prompt) + 5 * choice + index) % 26


def alphabet(prompt: str, tokens: int, choice: int = 0) -> str:
    """The text that a request gets."""
    return "".join(chr(letter(list(prompt.encode()), choice, i)) for i in range(tokens))


def scores(token: int, top: int) -> TokenLogprobs:
    """The chosen token is the likeliest, the next letters follow. `?` comes after thirty others."""
    if token == ord("?"):
        return TokenLogprobs(-30.0, [(ord("a") + rank, -0.5 - rank) for rank in range(top)], 31)
    return TokenLogprobs(-0.25, [(token + rank, -0.25 - rank) for rank in range(top)], 1)


def write(leg: Leg, choice: int, eos_at: int | None) -> list[Token | Finish]:
    """What a leg brings of one choice. `eos_at`: index at which the model ends by itself."""
    sampling, begin = leg.sampling, len(leg.prior)
    events: list[Token | Finish] = []
    text, shown = "", 0
    for index in range(sampling.max_tokens):
        token = letter(leg.prompt, choice, index)
        if index < begin:
            assert leg.prior[index] == token, "a replay continues the same text"
        if index == eos_at and not sampling.ignore_eos:
            finish: Finish | None = Finish(choice, "stop", text[shown:])
            events.append(Token(choice, index, EOS, ""))
            events.append(finish)
            break
        text += chr(token)
        place = min((text.find(s) for s in sampling.stop if s in text), default=-1)
        end = len(text) - _held(text, sampling.stop)
        finish = None
        if place >= 0:
            stop = next(s for s in sampling.stop if s in text)
            end = place + len(stop) if sampling.include_stop_str_in_output else place
            finish = Finish(choice, "stop", stop=stop)
        elif token in sampling.stop_token_ids:
            end = len(text) - 1
            finish = Finish(choice, "stop", stop=token)
        elif index == sampling.max_tokens - 1:
            finish = Finish(choice, "length", text[end:])
        k = sampling.logprobs
        chosen = None if k is None else scores(token, k)
        events.append(Token(choice, index, token, text[shown:end], chosen))
        shown = end
        if finish:
            events.append(finish)
            break
    first = [e for e in events if isinstance(e, Token) and e.index == begin]
    if leg.phases is Phases.PREFILL:
        ended = [e for e in events if isinstance(e, Finish)] if len(events) == 2 else []
        return [*first, *ended]
    skip = begin + (leg.phases is Phases.DECODE)
    return [e for e in events if isinstance(e, Finish) or e.index >= skip]


def _held(text: str, stops: list[str]) -> int:
    """Characters at the end that may begin a stop string."""
    longest = max(map(len, stops), default=1) - 1
    return next(
        (
            n
            for n in range(min(longest, len(text)), 0, -1)
            if any(s[:n] == text[-n:] for s in stops)
        ),
        0,
    )
