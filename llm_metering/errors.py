"""Everything that this package raises on purpose.

MeteringError
├── ConfigurationError          settings or arguments that cannot work; raised at start, never in a request
│   ├── MissingExtra            an optional dependency is not installed
│   └── AccountMismatch         the ledger belongs to another Stripe account or mode than the key
├── LedgerError                 the ledger cannot be opened, read or written
│   ├── LedgerInUse             another process holds this lane
│   ├── LedgerUnreachable       the database cannot be reached, or the connection to it was lost
│   └── LedgerFull              there is no room for more usage; what is there is safe
├── UnreadableResponse          no usage could be read, and the caller asked to be told
├── StripeUnavailable           Stripe did not give what was asked for; nothing was changed
└── BillingError                a step of the billing set-up failed; says which and what to do
"""

from __future__ import annotations


class MeteringError(Exception):
    """Root of every error that llm_metering raises on purpose."""


class ConfigurationError(MeteringError):
    """Settings or arguments that cannot work. The message says what to change."""


class MissingExtra(ConfigurationError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'llm_metering[{extra}]'")
        self.package = package
        self.extra = extra


class AccountMismatch(ConfigurationError):
    """The ledger is bound to one Stripe account and mode; this key belongs to another."""

    def __init__(self, *, bound_to: str, key_of: str) -> None:
        super().__init__(
            f"this ledger belongs to Stripe account {bound_to}, but the API key belongs to "
            f"{key_of}; use that account's key, or point LLM_METERING_LEDGER at another folder"
        )
        self.bound_to = bound_to
        self.key_of = key_of


class LedgerError(MeteringError):
    """The ledger cannot be opened, read or written."""


class LedgerInUse(LedgerError):
    """Another process holds this lane of the ledger."""


class LedgerUnreachable(LedgerError):
    """The ledger's database cannot be reached, or the connection was lost. What was to be written may be."""


class LedgerFull(LedgerError):
    """There is no room for more usage: the disk is full, or the ledger is at its cap. Nothing is dropped."""


class UnreadableResponse(MeteringError):
    """No usage could be read from a provider's answer."""


class BillingError(MeteringError):
    """A step of the billing set-up failed. The message says which, and what to do."""


class StripeUnavailable(MeteringError):
    """Stripe did not give what was asked for. Nothing was changed."""

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, None where no answer came."""
        self.code = code
        self.param = param

    @property
    def is_unknown_customer(self) -> bool:
        """Whether Stripe said that it has no such customer."""
        return self.status in (400, 404) and self.code == "resource_missing" and self.param == "customer"
