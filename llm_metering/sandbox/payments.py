"""How invoices get paid here: by test payment methods, which say in their name what they do."""

from __future__ import annotations

from .store import Doc

NO_PAYMENT_METHOD = (
    "This customer has no attached payment source or default payment method. Please consider adding a "
    "default payment method."
)


def payment_method(customer: Doc) -> str | None:
    """What an invoice of this customer would be paid with."""
    default: str | None = customer["invoice_settings"]["default_payment_method"] or customer["default_source"]
    return default


def declines(method: str) -> bool:
    """Whether a test payment method stands for a card that fails, such as `pm_card_chargeCustomerFail`."""
    return "fail" in method.lower() or "declined" in method.lower()
