"""What counts as a secret and what does not. Every secret here is made up."""

import base64
import importlib
import re
import sysconfig
from pathlib import Path
from random import Random
from time import process_time
from uuid import UUID

import pytest
from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString

from handoff.redaction import PIECE_CHARS, marker, names_secret, redact, steps
from handoff.secret_patterns import KINDS, VENDORS
from handoff.simulation.text import TOPICS, instructions, text

ROOT = Path(__file__).parent.parent
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
# Of detect-secrets: the module and the class of each kind that is taken from it.
PLUGINS = {
    "aws_access_key": ("aws", "AWSKeyDetector"),
    "azure_key": ("azure_storage_key", "AzureStorageKeyDetector"),
    "discord_token": ("discord", "DiscordBotTokenDetector"),
    "github_token": ("github_token", "GitHubTokenDetector"),
    "gitlab_token": ("gitlab_token", "GitLabTokenDetector"),
    "mailchimp_key": ("mailchimp", "MailchimpDetector"),
    "pypi_token": ("pypi_token", "PypiTokenDetector"),
    "sendgrid_key": ("sendgrid", "SendGridDetector"),
    "slack_token": ("slack", "SlackDetector"),
    "square_token": ("square_oauth", "SquareOAuthDetector"),
    "stripe_key": ("stripe", "StripeDetector"),
    "twilio_key": ("twilio", "TwilioKeyDetector"),
}


def made(length: int, signs: str = LETTERS, seed: int = 1) -> str:
    rng = Random(seed)  # noqa: S311 - the same in each run
    return "".join(rng.choice(signs) for _ in range(length))


def jwt() -> str:
    parts = (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890","name":"Ada"}', made(32).encode())
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def private_key(name: str = "RSA PRIVATE KEY", line_end: str = "\n") -> str:
    lines = [made(64, LETTERS + "+/", seed) for seed in range(25)]
    return line_end.join((f"-----BEGIN {name}-----", *lines, made(22) + "==", f"-----END {name}-----"))


SECRETS = {
    "artifactory_token": "AKC" + made(60),
    "authorization": made(40, "abcdef0123456789"),
    "aws_access_key": "AKIA" + made(16, "ABCDEFGHIJ234567"),
    "azure_key": made(86, LETTERS + "+/") + "==",
    "discord_token": "M" + made(23) + "." + made(6) + "." + made(27),
    "github_token": "ghp_" + made(36),
    "gitlab_token": "glpat-" + made(20),
    "google_key": "AIza" + made(35),
    "high_entropy": made(40, LETTERS + "+/"),
    "huggingface_token": "hf_" + made(34),
    "jwt": jwt(),
    "mailchimp_key": made(32, "abcdef0123456789") + "-us12",
    "model_key": "sk-ant-api03-" + made(93) + "-" + made(8),
    "npm_token": "npm_" + made(36),
    "password": "Tr0ub4dor-3",
    "private_key": private_key(),
    "pypi_token": "pypi-AgEIcHlwaS5vcmc" + made(120),
    "sendgrid_key": "SG." + made(22) + "." + made(43),
    "slack_token": "xoxb-" + made(11, "123456789") + "-" + made(12, "123456789") + "-" + made(24),
    "square_token": "sq0csp-" + made(43),
    "stripe_key": "sk_live_" + made(24),
    "telegram_token": "110201543:AA" + made(33),
    "twilio_key": "SK" + made(32, "abcdef0123456789"),
    "url_password": "s3cretpw",
}
PLACES = {
    "prose": "The build failed until I used {} for the deployment; rotate it afterwards.",
    "json": '{{"service": "billing", "value": "{}", "retries": 3}}',
    "env": "MODE=production\nVALUE={}\nPORT=8080\n",
    "code": 'client = Client("{}", timeout=30)\n',
    "yaml": "env:\n  - name: VALUE\n    value: {}\n",
    "shell": "$ export VALUE='{}' && make deploy\n",
}
OF_THESE_KINDS = {  # which are secrets because of what is said before them
    "azure_key": "AccountKey={}",
    "authorization": "Authorization: Bearer {}",
    "url_password": "postgres://app:{}@db.internal:5432/app",
}
ASSIGNMENTS = {
    "prose": "The admin password is {} until Friday.",
    "json": '{{"user": "app", "db_password": "{}"}}',
    "escaped json": '"{{\\"user\\": \\"app\\", \\"db_password\\": \\"{}\\"}}"',
    "env": "DB_PASSWORD={}\n",
    "code": 'API_KEY = "{}"\n',
    "go": 'secret := "{}"\n',
    "yaml": "db:\n  password: {}\n",
    "shell": "$ mysql --password={} shop\n",
    "query": "GET /hook?token={}&page=2",
}


def cases() -> list[tuple[str, str, str]]:
    """Kind, place and text."""
    found = [("password", place, words.format(SECRETS["password"])) for place, words in ASSIGNMENTS.items()]
    for kind, secret in SECRETS.items():
        if kind != "password":
            said = OF_THESE_KINDS.get(kind, "{}").format(secret)
            found += [(kind, place, words.format(said)) for place, words in PLACES.items()]
    return found


def test_each_kind_of_secret_is_found_in_prose_json_settings_code_yaml_and_shell() -> None:
    assert SECRETS.keys() == set(KINDS)
    for kind, place, said in cases():
        done = redact(said)
        assert SECRETS[kind] not in done.text, (kind, place)
        assert dict(done.kinds) == {kind: 1}, (kind, place)
        before, after = done.text.split(marker(kind))
        assert said.startswith(before), (kind, place)
        assert said.endswith(after), (kind, place)


def test_what_is_redacted_stays_as_it_is_when_it_is_redacted_again() -> None:
    for kind, place, said in cases():
        once = redact(said).text
        assert redact(once) == (once, {}), (kind, place)


@pytest.mark.parametrize("name", ["PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
def test_a_private_key_is_redacted_whole_also_escaped_cut_off_or_in_a_long_text(name: str) -> None:
    prose = "It worked, and the next step is the release. " * 400
    for key in (private_key(name), private_key(name, "\\n"), private_key(name).split("-----END")[0]):
        for before, after in (("Use this: ", ""), ("", f"\n{prose}"), (prose, "")):
            assert redact(before + key + after).text.split() == f"{before}{marker('private_key')} {after}".split()

    mentioned = "Files begin with -----BEGIN PRIVATE KEY----- and end with -----END PRIVATE KEY-----; look for both."
    assert redact(mentioned) == (mentioned, {})


def test_random_strings_are_told_from_hashes_identifiers_and_encoded_files() -> None:
    found = sum(bool(redact(f"The key {made(32, seed=seed)} works").kinds) for seed in range(1_000))
    assert found > 950

    rng = Random(2)  # noqa: S311 - the same in each run
    blob = base64.b64encode(rng.randbytes(5_000)).decode()
    for ordinary in (
        f"session {UUID(int=rng.getrandbits(128))} at commit {rng.randbytes(20).hex()}",
        "sent to 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        f"sha256:{rng.randbytes(32).hex()}",
        f'"integrity": "sha512-{base64.b64encode(rng.randbytes(64)).decode()}"',
        f"golang.org/x/net v0.1.0 h1:{base64.b64encode(rng.randbytes(32)).decode()}",
        f"SHA256:{base64.b64encode(rng.randbytes(32)).decode().rstrip('=')}",
        f"![shot](data:image/png;base64,{blob})",
        base64.encodebytes(rng.randbytes(5_000)).decode(),
        "TestThatUtf8IsReadInBase64Headers and getHTTP2ServerForIPv6Address",
        "src/importer/2024/RetryPolicyV2/handlers_Base64.py",
        "https://docs.google.com/spreadsheets/d/1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgvE2upms/edit",
        "token: TokenArg | None = None; password = get_password(user2); secret = self.secrets[1]",
        "password: required, at least 12 characters; the token is valid for 3600 s; api_key=your-api-key-123",
        "postgres://user:password@localhost/app and https://${USER}:${TOKEN1}@host.example",
        "max_tokens: 4096, token_budget=1_500, tokens = 20000",
    ):
        assert redact(ordinary) == (ordinary, {})


def test_hardly_anything_is_redacted_in_the_prose_of_agents_in_source_code_and_in_lock_files() -> None:
    rng = Random(3)  # noqa: S311 - the same in each run
    prose = [text(rng, rng.choice(TOPICS), rng.randint(200, 600)) for _ in range(3_000)]
    prose += [instructions(rng, rng.choice(TOPICS)) for _ in range(500)]
    assert [said for said in prose if redact(said).kinds] == []

    library = [path.read_text("utf-8", "replace") for path in Path(sysconfig.get_path("stdlib")).glob("*.py")]
    assert len(library) > 100
    assert sum(redact(code).kinds.total() for code in library) <= 2

    ours = [*(ROOT / "service").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "uv.lock"]
    assert {
        path.name: found
        for path in ours
        if path.stem != "secret_patterns" and (found := redact(path.read_text("utf-8")).kinds)
    } == {}


def test_the_name_of_a_value_in_an_object_can_make_it_a_password() -> None:
    assert names_secret("db_password", "hunter2!")
    assert not names_secret("title", "hunter2!")
    assert not names_secret("password", "required")


def test_a_long_text_is_redacted_in_small_steps_and_a_secret_between_two_pieces_is_found() -> None:
    secret = SECRETS["github_token"]
    for offset in range(0, 60, 3):
        padding = ("word " * PIECE_CHARS)[: PIECE_CHARS - offset - 1] + " "
        long = f"{padding}{secret} {padding}"
        *waits, done = steps(long)
        assert len(waits) in {2, 3}
        assert done is not None
        assert done.text == f"{padding}{marker('github_token')} {padding}"


@pytest.mark.parametrize(
    "hostile",
    [
        "sk-",
        "eyJ",
        "eyJaaaaaaaa.",
        "://a:",
        "password=",
        "password" * 5,
        "-----BEGIN PRIVATE KEY-----",
        "bearer ",
        "xoxb-1-",
        "1-",
        "aA1",
        "AKIA",
        "\n\"'",
        "a1B2c3D4e5F6g7H8i9J0k1 ",
        "https://hooks.slack.com/services/T",
        "-----END",
        "pwd:  '\"",
    ],
)
def test_the_work_grows_no_faster_than_a_hostile_text(hostile: str) -> None:
    seeds = f"{SECRETS['jwt']} {SECRETS['slack_token']} {SECRETS['url_password']} "
    spent: list[float] = []
    for pieces in (8, 32):
        long = seeds + (hostile * (pieces * PIECE_CHARS))[: pieces * PIECE_CHARS]
        began = process_time()
        redact(long)
        spent.append(process_time() - began)
    assert spent[1] < 12 * spent[0] + 0.05
    assert spent[1] < 2.5


def test_the_patterns_of_vendors_are_those_of_detect_secrets() -> None:
    theirs = {
        (kind, regex.pattern, bool(regex.flags & re.IGNORECASE))
        for kind, (module, name) in PLUGINS.items()
        for regex in getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name).denylist
    }
    ours = {(it.kind, it.regex, it.ignores_case) for it in VENDORS}
    assert ours <= theirs
    assert [kind for kind, *_ in theirs - ours] == ["aws_access_key"]  # an assignment, which is found as a password


def test_entropy_is_measured_as_detect_secrets_does() -> None:
    word = made(40)
    from handoff.redaction import _entropy_bits

    assert _entropy_bits(word) == pytest.approx(Base64HighEntropyString().calculate_shannon_entropy(word))
