"""Where ticks go and how numbers are written, alike in files and on the page (report.js says the same)."""

import math

_SUPERSCRIPTS = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
_SUFFIXES = ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k'))


def text(value: float, unit: str = 'number', digits: int = 3) -> str:
  """A number as people read it: 12.5M (count), 3×10¹⁵ (flops), 1.5% (percent), 2.345 (number)."""
  if value is None or not math.isfinite(value):
    return '∞' if value in (math.inf, -math.inf) else '–'
  if unit == 'percent':
    return f'{_short(100 * value, digits) if abs(value) < 1e4 else _power(100 * value, digits)}%'
  if value == 0:
    return '0'
  if unit == 'count':
    for scale, suffix in _SUFFIXES:
      if abs(value) >= scale * (1 - 0.5 * 10**-digits):
        return _short(value / scale, digits) + suffix if abs(value) < 1e16 else _power(value, digits)
    return _short(value, digits)
  if unit == 'flops' or not 1e-4 <= abs(value) < 1e6:
    return _power(value, digits)
  return _short(value, digits)


def linear(low: float, high: float, target: int = 6) -> list[float]:
  """Round ticks 1, 2, 2.5, 5 x 10^k inside [low, high]."""
  span = high - low
  if not span > 0 or not math.isfinite(span):
    return [low]
  raw = span / target
  power = 10 ** math.floor(math.log10(raw))
  steps = [m * power for m in (0.2, 0.5, 1, 2, 2.5, 5, 10)]
  at = next(i for i, step in enumerate(steps) if step >= raw * (1 - 1e-9))
  while True:
    step = steps[at]
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if last > first or at == 0:
      return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]
    at -= 1


def log(low: float, high: float, target: int = 6) -> list[float]:
  """Ticks on a log axis: powers of ten, 1-2-5, or evenly spaced values where the range is short."""
  decades = math.log10(high / low)
  if decades < 0.75:
    return [t for t in linear(low, high, target) if t > 0]
  exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
  mantissas = (1, 2, 5) if decades * 3 <= target + 2 else (1, 3) if decades * 2 <= target + 1 else (1,)
  every = max(1, math.ceil(decades / target)) if mantissas == (1,) else 1
  ticks = [m * 10.0**e for e in exponents for m in mantissas if e % every == 0]
  return [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]


def _short(value: float, digits: int) -> str:
  out = f'{value:.{digits}g}'
  if 'e' in out:
    out = f'{float(out):.0f}' if abs(value) >= 1 else _power(value, digits)
  return out.replace('-', '−')


def _power(value: float, digits: int) -> str:
  mantissa, exponent = f'{value:.{digits - 1}e}'.split('e')
  mantissa = mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa
  power = '10' + str(int(exponent)).translate(_SUPERSCRIPTS)
  return (power if mantissa == '1' else f'{mantissa}×{power}').replace('-', '−')
