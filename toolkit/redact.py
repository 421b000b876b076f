"""Takes secrets out of text, by their kind: what logs, errors, W&B and terminals are given goes through here.

Kinds: passwords and tokens in URLs, signatures of signed URLs, headers, tokens whose shape says whose they are, private
keys, values of secret names, and what commands take on their command line. What is a path, a reference to
a variable, a number or a plain word is no secret: `eos_token=2`, `HF_TOKEN=$(cat FILE)`.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

HIDDEN = "***"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_SECRET_WORDS = {"SECRET", "SECRETS", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "CREDS", "APIKEY", "DSN"}
_SECRET_ENDS = ("PASSWORD", "PASSWORDS", "PASSWD", "SECRET", "APIKEY", "ACCESSKEY", "AUTHTOKEN")
_SECRET_PAIRS = {
    *(("API", "KEY"), ("PRIVATE", "KEY"), ("ACCESS", "KEY"), ("SECRET", "KEY"), ("ENCRYPTION", "KEY")),
    *(("SIGNING", "KEY"), ("AUTH", "KEY"), ("ACCOUNT", "KEY"), ("DEPLOY", "KEY"), ("SSH", "KEY"), ("LICENSE", "KEY")),
    *((vendor, "KEY") for vendor in ("WANDB", "OPENAI", "ANTHROPIC", "AZURE", "COMET", "HF", "GITHUB", "GITLAB")),
    *((vendor, "PAT") for vendor in ("GH", "GITHUB", "GITLAB", "AZURE", "AZP")),
    *(("CONNECTION", "STRING"), ("CONN", "STRING"), ("SHARED", "KEY"), ("ACCESS", "SIGNATURE")),
}
_LAST_WORDS = {"PW", "PWD", "PASS", "AUTH"}
"""Mean a secret where they end a name of several words."""
_POINTERS = {"FILE", "PATH", "DIR", "NAME", "URL", "URI", "SOCK", "HELPER", "COMMAND", "CMD", "TYPE", "TTL", "STDIN"}
"""End the name of what leads to a secret and is none."""
_WORDS_OF_TEXT = {
    *("EOS", "BOS", "PAD", "UNK", "SEP", "CLS", "MASK", "SPECIAL", "ADDED", "NEXT", "LAST", "FIRST", "PREV", "CURRENT"),
    *("PER", "EACH", "START", "END", "STOP", "BEGIN", "IMAGE", "AUDIO", "TEXT", "NUM", "MAX", "MIN", "EOT", "EOD"),
}
"""Come before a token of a text."""
_WORDS_OF_PASSES = {
    "BY",
    "FORWARD",
    "BACKWARD",
    "FIRST",
    "SECOND",
    "THIRD",
    "LAST",
    "SINGLE",
    "ONE",
    "TWO",
    "NUM",
    "OLD",
}
_NO_PASSWORDS = (
    "COMPASS",
    "BYPASS",
    "TRESPASS",
    "SURPASS",
    "OVERPASS",
    "UNDERPASS",
    "HIGHPASS",
    "LOWPASS",
    "BANDPASS",
    "OLDPWD",
)

_HARMLESS = re.compile(
    r"(?i)\s*(?:\*+|true|false|null|none|yes|no|on|off|auto|[-+]?\d{0,3}|\$[a-z_{(].*|<[^>]*>?|\.{3})\s*"
)
_PATH = re.compile(r"(?:~|\.{0,2})/\S*")
_KEPT_IN_FILES = {"CREDENTIAL", "CREDENTIALS", "CREDS", "PRIVATE", "SSH", "DEPLOY", "SIGNING"}
"""Words in the names of secrets that are often files, named by their path."""
_PROSE = {"TOKEN", "SECRET", "AUTH", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
"""Words of ordinary text, where `word: more words` says nothing secret."""
_SIGNED = {
    *("sig", "signature", "key", "token", "auth", "pass", "pwd", "pw", "policy", "jwt", "hmac", "delegation"),
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "x-goog-signature", "x-goog-credential"),
    *("awsaccesskeyid", "key-pair-id", "ossaccesskeyid", "sharedaccesssignature", "accountkey"),
}
"""Parameters of a URL that let in whoever has them."""


def redact(text: str) -> str:
    """Put `***` in the place of every secret in a text; a text without one comes back as it is."""
    for rule in _RULES:
        text = rule(text)
    return text


def redact_values(value: Any, *, name: str = "") -> Any:
    """Take the secrets out of nested values, those of JSON; a name says what its value is."""
    if isinstance(value, str):
        return HIDDEN if is_secret(name, value) else redact(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): redact_values(inner, name=str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(inner, name=name) for inner in value]
    return value


def is_secret(name: str, value: str) -> bool:
    """Whether a value is a secret by its name: of `PGPASS` and `api_key`, unless it only says where the secret is."""
    if not is_secret_name(name) or _HARMLESS.fullmatch(value):
        return False
    words = _split(name)
    if _KEPT_IN_FILES & set(words) and _PATH.fullmatch(value):
        return False
    return not (words[-1] == "TOKEN" and value.strip().isdigit())


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a variable, key or option of this name holds a secret."""
    words = _split(name)
    if not words or words[-1] in _POINTERS:
        return False
    if _SECRET_WORDS & set(words) or any(word.endswith(_SECRET_ENDS) for word in words):
        return True
    if any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words)):
        return True
    return _is_token(name, words) or _is_password(words, before=words[-2] if len(words) > 1 else "")


def _split(name: str) -> list[str]:
    return [word.upper() for word in _WORD.findall(name)]


def _is_token(name: str, words: list[str]) -> bool:
    if words[-1] == "TOKEN":
        return len(words) == 1 or words[-2] not in _WORDS_OF_TEXT
    if words[-1].endswith("TOKEN"):
        return True
    return name.isupper() and "TOKEN" in words and not {"ID", "IDS"} & set(words)


def _is_password(words: list[str], *, before: str) -> bool:
    last = words[-1]
    if last in _LAST_WORDS:
        return bool(before) and before not in _WORDS_OF_PASSES
    return len(last) > 4 and last.endswith(("PASS", "PWD")) and not last.endswith(_NO_PASSWORDS)


def _hide_user(match: re.Match[str]) -> str:
    """Hide a token in the place of a user: it is long, and has digits and letters."""
    user = match["user"]
    is_one = any(char.isdigit() for char in user) and any(char.isalpha() for char in user)
    return f"{match['head']}{HIDDEN}@" if is_one else match[0]


def _hide_parameter(match: re.Match[str]) -> str:
    is_one = match["name"].lower() in _SIGNED or is_secret_name(match["name"])
    return f"{match['head']}{HIDDEN}" if is_one else match[0]


def _hide_option(match: re.Match[str]) -> str:
    is_one = is_secret(match["name"], match["value"]) and not match["value"].startswith("-")
    return f"{match['head']}{HIDDEN}" if is_one else match[0]


def _hide_word(match: re.Match[str]) -> str:
    return match[0] if _HARMLESS.fullmatch(match["value"]) else f"{match['head']}{HIDDEN}"


def _hide_named(text: str) -> str:
    """Hide the values of names: `NAME=value`, `name: value`, `"name": "value"`, quoted or not, also inside others."""
    parts, done = [], 0
    for match in _NAME.finditer(text):
        if match.start() < done or not is_secret_name(match["name"]):
            continue
        if match["sign"] == "," and not (match["dashes"] or match["name"].isupper()):
            continue  # a list of words, not of a command or of pairs
        found = _VALUE.match(text, match.end())
        if found is None:
            continue
        value = found["quoted"] if found["quote"] else found["bare"].rstrip(_PUNCTUATION)
        is_prose = (
            match["sign"] == ":" and not match["quote"] and not found["quote"] and match["name"].upper() in _PROSE
        )
        if not is_secret(match["name"], value) or (is_prose and not any(char.isdigit() for char in value)):
            continue
        start = found.start("quoted") if found["quote"] else found.start("bare")
        parts += [text[done:start], HIDDEN]
        done = start + len(value)
    return "".join([*parts, text[done:]])


_PUNCTUATION = ",;:.)]}>\\"
_NAME = re.compile(
    r"""(?<![A-Za-z0-9_.-])(?P<quote>\\{0,3}["'])?(?P<dashes>-{0,2})(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)
    (?:\\{0,3}["'])?\]?[ \t]{0,8}(?P<sign>=(?!=)>?|:(?![:=/])|,(?=[ ]?\\{0,3}["']))[ \t]{0,8}""",
    re.X,
)
_VALUE = re.compile(
    r"""(?P<quote>\\{0,3}["'])(?P<quoted>(?:(?!(?P=quote))(?:\\.|[^\n\\]))*)(?P=quote)
    | \\{0,3}["']?(?P<bare>[^\s'"&|]+)""",
    re.X,
)


def _shape(pattern: str) -> Callable[[str], str]:
    return functools.partial(re.compile(rf"(?<![A-Za-z0-9]){pattern}").sub, HIDDEN)


def _rule(pattern: str, put: Callable[[re.Match[str]], str] = _hide_word) -> Callable[[str], str]:
    return functools.partial(re.compile(pattern, re.X).sub, put)


# Every repetition is bounded, or begins where the one before cannot have passed: the time is linear in the text.
_RULES: tuple[Callable[[str], str], ...] = (
    _shape(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:[^-]|-(?!----))*(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"),
    _rule(
        r"""(?P<head>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,40}://(?!\[)[^\s/?\#@:'"<>\\]{0,256}:)
        (?: [^\s/?\#'"<>]{1,512} | (?!\d{1,5}[/?\#])[^\s'"<>@]{1,512} )@""",
        lambda match: f"{match['head']}{HIDDEN}@",
    ),
    _rule(
        r"(?P<head>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,40}://)(?P<user>[A-Za-z0-9_.~%-]{20,512})@", _hide_user
    ),
    _rule(
        r"""(?P<head>[?&;](?:amp;)?(?P<name>[A-Za-z][A-Za-z0-9_-]{0,60})=)(?P<value>[^&;\s\#'"<>]+)""", _hide_parameter
    ),
    _rule(
        r"""(?i:(?P<head>authorization\\?["']?[ ]{0,4}[:=][ ]{0,4}\\?["']?
        (?:(?:bearer|basic|token|digest|negotiate)[ ]+)?))
        (?P<value>[^\s'"]+)"""
    ),
    _rule(r"(?i:(?P<head>\bbearer[ ]{1,4}))(?P<value>[A-Za-z0-9._~+/=-]{16,})"),
    _shape(r"(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    _shape(r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    _shape(r"gl(?:pat|dt|rt|cbt|ptt|soat)-[A-Za-z0-9_-]{16,}"),
    _shape(r"sk-(?=[A-Za-z_-]{0,40}\d)[A-Za-z0-9_-]{20,}"),
    _shape(r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _shape(r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}"),
    _shape(r"(?:AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,})"),
    _shape(r"(?:wandb_v1_[A-Za-z0-9_]{20,}|local-[0-9a-f]{40}|npm_[A-Za-z0-9]{36}|pypi-AgEI[A-Za-z0-9_-]{20,})"),
    _shape(r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"),
    _hide_named,
    _rule(
        r"""(?P<head>(?<![A-Za-z0-9_-])--(?P<name>[A-Za-z][A-Za-z0-9_-]*)[ \t]{1,8}["']?)(?P<value>[^\s'"]+)""",
        _hide_option,
    ),
    # Commands that take a secret under an option or at a place that does not say so.
    _rule(
        r"""(?P<head>\b(?:docker|podman|helm|skopeo|buildah|nerdctl|singularity|apptainer|az|oc)\b[^\n|;&]{0,40}?
        \blogin\b[^\n|;&]{0,120}?[ ]-p[ =]?["']?)(?P<value>[^\s'"]+)"""
    ),
    _rule(
        r"""(?P<head>\bcurl\b[^\n|;]{0,120}?[ ](?:-u|--user|-U|--proxy-user)[ =]?["']?[^\s:'"]{0,100}:)
        (?P<value>[^\s'"]+)"""
    ),
    _rule(r"""(?P<head>\b(?:mysql|mysqldump|mariadb)\b[^\n|;]{0,120}?[ ]-p)(?P<value>[^\s'"]+)"""),
    _rule(r"""(?P<head>\bsetenv[ ]{1,4}(?P<name>[A-Za-z_]\w{0,60})[ ]{1,4}["']?)(?P<value>[^\s'"]+)""", _hide_option),
    _rule(r"""(?P<head>\blogin[ ]{1,4}\S{1,100}[ ]{1,4}password[ ]{1,4})(?P<value>\S+)"""),  # of ~/.netrc
    _rule(r"""(?i:(?P<head>%3A%2F%2F[A-Z0-9._~-]{0,100}%3A)(?P<value>[^\s/?&]{1,200})(?=%40))"""),
    _rule(
        r"""(?P<head>\b(?:echo|printf)[ ]{1,4}(?:-n[ ]{1,4})?["']?)(?P<value>[^\s'"|]+)
        (?=["']?[ ]{0,4}\|[^\n;&]{0,120}(?:--password-stdin|\bwandb[ ]login))"""
    ),
    _rule(r"""(?P<head>\bsshpass[ ]{1,4}-p[ ]?["']?)(?P<value>[^\s'"]+)"""),
    _rule(
        r"""(?P<head>\bwandb[ ]{1,4}login[ ]{1,4}(?:--?[a-z-]+(?:[ =]https?://\S+)?[ ]{1,4}){0,6}["']?)
        (?P<value>[A-Za-z0-9_-]{20,})"""
    ),
)
