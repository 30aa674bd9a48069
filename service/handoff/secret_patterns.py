"""What secrets look like: the patterns by which `redaction.py` finds them, in the syntax of both `re` and Hyperscan."""

from typing import Final, NamedTuple

PRIVATE_KEY: Final = "private_key"
PASSWORD: Final = "password"  # noqa: S105 - the name of a kind
HIGH_ENTROPY: Final = "high_entropy"


class Pattern(NamedTuple):
    """A pattern of one kind of secret.

    The secret is the group of this name, or else the whole match and the rest of its word. `sign` is a cheaper pattern for
    Hyperscan, which matches wherever such a secret is.
    """

    kind: str
    regex: str
    sign: str | None = None
    ignores_case: bool = False


# Those of detect-secrets (Apache-2.0, Yelp) that match a token and nothing else; a test compares them with the release in
# uv.lock. The library itself would cost each process that writes 20 MB: it imports what it scans repositories with.
VENDORS: Final = (
    Pattern("aws_access_key", r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}"),
    Pattern("azure_key", r"AccountKey=[a-zA-Z0-9+\/=]{88}"),
    Pattern("discord_token", r"[MNO][a-zA-Z\d_-]{23,25}\.[a-zA-Z\d_-]{6}\.[a-zA-Z\d_-]{27}"),
    Pattern("github_token", r"(ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9_]{36}"),
    Pattern("gitlab_token", r"(glpat|gldt|glft|glsoat|glrt)-[A-Za-z0-9_\-]{20,50}(?!\w)"),
    Pattern("gitlab_token", r"GR1348941[A-Za-z0-9_\-]{20,50}(?!\w)"),
    Pattern("gitlab_token", r"glcbt-([0-9a-fA-F]{2}_)?[A-Za-z0-9_\-]{20,50}(?!\w)"),
    Pattern("gitlab_token", r"glimt-[A-Za-z0-9_\-]{25}(?!\w)"),
    Pattern("gitlab_token", r"glptt-[A-Za-z0-9_\-]{40}(?!\w)"),
    Pattern("gitlab_token", r"glagent-[A-Za-z0-9_\-]{50,1024}(?!\w)"),
    Pattern("gitlab_token", r"gloas-[A-Za-z0-9_\-]{64}(?!\w)"),
    Pattern("mailchimp_key", r"[0-9a-z]{32}-us[0-9]{1,2}"),
    Pattern("pypi_token", r"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9-_]{70,}"),
    Pattern("pypi_token", r"pypi-AgENdGVzdC5weXBpLm9yZw[A-Za-z0-9-_]{70,}"),
    Pattern("sendgrid_key", r"SG\.[a-zA-Z0-9_-]{22}\.[a-zA-Z0-9_-]{43}"),
    Pattern("slack_token", r"xox(?:a|b|p|o|s|r)-(?:\d+-)+[a-z0-9]+", ignores_case=True),
    Pattern(
        "slack_token",
        r"https://hooks\.slack\.com/services/T[a-zA-Z0-9_]+/B[a-zA-Z0-9_]+/[a-zA-Z0-9_]+",
        ignores_case=True,
    ),
    Pattern("square_token", r"sq0csp-[0-9A-Za-z\\\-_]{43}"),
    Pattern("stripe_key", r"(?:r|s)k_live_[0-9a-zA-Z]{24}"),
    Pattern("twilio_key", r"AC[a-z0-9]{32}"),
    Pattern("twilio_key", r"SK[a-z0-9]{32}"),
)

_NAME: Final = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|auth[_-]?key|account[_-]?key|credentials?)"
    r"[\w-]{0,20}"
)
# A name, then `=`, `:`, `:=`, `=>` or `is`, then the value, each of them with or without quotes, which may be escaped.
ASSIGNED: Final = (
    rf"(?i:{_NAME}[\"'`\\]{{0,3}}[ \t]{{0,3}}(?:=>|:=|[:=]|\bis[ \t])[ \t]{{0,3}}(?:[bru]{{1,2}}[\"'])?[\"'`\\]{{0,3}})"
    r"(?P<secret>[^\s\"'`,;<>(){}\[\]\\|]{6,256})(?P<after>[(\[{]?)"
)

OURS: Final = (
    Pattern(PRIVATE_KEY, r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"),
    Pattern(
        "jwt",
        r"\beyJ[A-Za-z0-9_-]{8,4000}\.eyJ[A-Za-z0-9_-]{8,4000}(?:\.[A-Za-z0-9_-]{0,1000})?",
        r"eyJ[A-Za-z0-9_-]{8}",
    ),
    Pattern("github_token", r"\bgithub_pat_[A-Za-z0-9_]{22,255}", r"github_pat_\w{22}"),
    Pattern("gitlab_token", r"\bglpat-[A-Za-z0-9_-]{20,255}\.[a-z0-9.]{3,12}", r"glpat-"),
    Pattern("model_key", r"\bsk-(?:ant-|proj-|svcacct-|or-)?[A-Za-z0-9_-]{20,255}", r"sk-[A-Za-z0-9_-]{20}"),
    Pattern("google_key", r"\bAIza[A-Za-z0-9_-]{35}", r"AIza[A-Za-z0-9_-]{35}"),
    Pattern("npm_token", r"\bnpm_[A-Za-z0-9]{36}", r"npm_[A-Za-z0-9]{36}"),
    Pattern("huggingface_token", r"\bhf_[A-Za-z0-9]{30,64}", r"hf_[A-Za-z0-9]{30}"),
    Pattern("telegram_token", r"\b[0-9]{8,10}:AA[A-Za-z0-9_-]{33}", r"[0-9]{8}:AA[A-Za-z0-9_-]{33}"),
    Pattern("artifactory_token", r"\bAKC[a-zA-Z0-9]{20,128}", r"AKC[a-zA-Z0-9]{20}"),
    Pattern(
        "authorization",
        r"(?i:\b(?:bearer|basic)[ \t]{1,3})(?P<secret>[A-Za-z0-9._~+/=-]{16,4000})",
        r"(?i)(?:bearer|basic)[ \t]{1,3}[a-z0-9._~+/=-]{16}",
    ),
    Pattern(
        "url_password",
        r"://[^\s/@:\"'<>]{0,100}:(?P<secret>[^\s/@\"'<>]{3,200})@[A-Za-z0-9]",
        r"://[^\s/@:\"'<>]{0,100}:[^\s/@\"'<>]{3,200}@",
    ),
    Pattern(PASSWORD, ASSIGNED),
    Pattern(
        HIGH_ENTROPY,
        r"(?:^|[^A-Za-z0-9+/_-])(?P<secret>[A-Za-z0-9+/_-]{20,56}={0,2})(?![A-Za-z0-9+/_=-])",
        r"(?:[a-z0-9][A-Z]|[A-Z][0-9])[A-Za-z0-9+/_-]{6}",
    ),
)
PATTERNS: Final = (*OURS, *VENDORS)  # private keys first
KINDS: Final = tuple(sorted({pattern.kind for pattern in PATTERNS}))
