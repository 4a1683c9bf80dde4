"""Money as Stripe takes it: currencies, their minor units, and exact decimals.

Amounts are in major units (dollars) on our side and in minor units (cents) on Stripe's. Both are
`Decimal`; nothing here rounds.
"""

from __future__ import annotations

import difflib
from decimal import Context, Decimal, InvalidOperation

from ..errors import ConfigurationError

Amount = Decimal | int | str
"""An amount in major units: a Decimal, a whole number, or decimal text such as "0.04". Never a float."""

MAX_DECIMALS = 12
"""Decimal places that Stripe keeps of a price, in the currency's minor unit."""

_MAX_DIGITS = 15
"""Digits before the point of an amount in minor units; more is a slip of the hand, not a price."""

_EXACT = Context(prec=60)

_NO_DECIMALS = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"
_TWO_DECIMALS = """
usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob brl bsd bwp byn bzd cad cdf chf cny
cop crc cve czk dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gtq gyd hkd hnl htg huf idr ils inr isk jmd
kes kgs khr kyd kzt lak lbp lkr lrd lsl mad mdl mkd mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr
nzd pab pen pgk php pkr pln qar ron rsd rub sar sbd scr sek sgd shp sle sos srd std szl thb tjs top try ttd
twd tzs uah ugx uyu uzs wst xcd xcg yer zar zmw
"""

ZERO_DECIMAL = frozenset(_NO_DECIMALS.split())
"""The smallest unit is the currency itself: 500 JPY is 500."""

THREE_DECIMAL = frozenset(["bhd", "jod", "kwd", "omr", "tnd"])
"""A thousand smallest units make one: 5 KWD is 5000."""

WHOLE_ONLY = ZERO_DECIMAL | {"isk", "ugx"}
"""Charged in whole units only. ISK and UGX are still written with two decimals, so 5 ISK is 500."""

CURRENCIES = frozenset(_TWO_DECIMALS.split()) | ZERO_DECIMAL | THREE_DECIMAL
"""What Stripe can charge in; an account may be allowed fewer."""

_COMMON = ("usd", "eur", "gbp", "cad", "aud", "jpy", "chf", "inr", "brl", "sek")
"""Looked at first when a name was mistyped."""


def parse_currency(text: str, field: str = "currency") -> str:
    """The currency's code in lower case; `ConfigurationError` if Stripe does not know it."""
    code = text.strip().lower() if isinstance(text, str) else ""
    if code in CURRENCIES:
        return code
    near = difflib.get_close_matches(code, _COMMON, n=1)
    near = near or difflib.get_close_matches(code, sorted(CURRENCIES), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(
        f"{field}={text!r} is not a currency that Stripe knows (three letters, such as 'usd'){hint}"
    )


def parse_amount(value: Amount, field: str = "amount") -> Decimal:
    """An exact amount of 0 or more; `ConfigurationError` names the field and the rule."""
    if isinstance(value, float):
        raise ConfigurationError(
            f"{field}={value!r} is a float, and floats cannot hold money exactly; "
            f"write Decimal({str(value)!r}) or {str(value)!r}"
        )
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, str)):
        raise ConfigurationError(f"{field}={value!r} must be a Decimal, a whole number or decimal text")
    try:
        amount = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        raise ConfigurationError(
            f"{field}={value!r} is not a number; write it like '0.04', with a point and no currency sign"
        ) from None
    said = repr(value) if isinstance(value, str) else str(value)
    if not amount.is_finite():
        raise ConfigurationError(f"{field}={said} must be a finite number")
    if amount < 0:
        raise ConfigurationError(f"{field}={said} is negative; a price is 0 or more")
    # Past these bounds the decimal context would round or overflow before the rules below could refuse.
    if amount.adjusted() >= _MAX_DIGITS or len(amount.as_tuple().digits) > _EXACT.prec // 2:
        raise ConfigurationError(f"{field}={said} is too large or too long to be a price")
    if -int(amount.as_tuple().exponent) > _EXACT.prec // 2:
        raise ConfigurationError(f"{field}={said} has more decimals than Stripe keeps ({MAX_DECIMALS})")
    return amount


def exponent(currency: str) -> int:
    """How many decimal places Stripe's amounts in this currency stand for: 2 for usd, 0 for jpy."""
    return 0 if currency in ZERO_DECIMAL else 3 if currency in THREE_DECIMAL else 2


def minor_units(value: Amount, currency: str, field: str = "amount") -> Decimal:
    """An amount in the currency's minor unit, exactly: "0.04" usd is 4, "0.0005" usd is 0.05."""
    minor = parse_amount(value, field).scaleb(exponent(currency), _EXACT)
    if minor.adjusted() >= _MAX_DIGITS:
        raise ConfigurationError(f"{field}={value} is too large: at most {_MAX_DIGITS} digits in minor units")
    if -int(plain(minor).as_tuple().exponent) > MAX_DECIMALS:
        raise ConfigurationError(
            f"{field}={value} has more than {MAX_DECIMALS} decimals in the minor unit of {currency!r} "
            f"({wire(minor)}); Stripe keeps at most {MAX_DECIMALS}"
        )
    return plain(minor)


def major_units(minor: int | Decimal, currency: str) -> Decimal:
    """Stripe's amount in major units, with the currency's decimal places: 120 usd is Decimal("1.20")."""
    return Decimal(minor).scaleb(-exponent(currency), _EXACT)


def plain(value: Decimal) -> Decimal:
    """The same number without trailing zeros and without an exponent above 0."""
    value = value.normalize(_EXACT)
    return value.quantize(Decimal(1), context=_EXACT) if int(value.as_tuple().exponent) > 0 else value


def wire(value: Decimal) -> str:
    """Digits and a point only: `str()` would write small decimals as 1E-12, which Stripe cannot read."""
    return format(plain(value), "f")


def show(value: Decimal, currency: str) -> str:
    """For people: "1.20 USD", "0.0004 USD", "500 JPY"."""
    places = max(exponent(currency), -int(plain(value).as_tuple().exponent))
    return f"{value.quantize(Decimal(1).scaleb(-places), context=_EXACT):,f} {currency.upper()}"
