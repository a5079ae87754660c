"""The summary for a terminal; and how names from outside are shown anywhere."""

import math
from collections.abc import Iterator

_SHOWN = 5  # names of a warning
_MAX_NAME = 200  # characters


def printable(name: str, length: int = _MAX_NAME) -> str:
  """Returns one line of a name or caption: what is not UTF-8 and control characters as escapes."""
  name = name if len(name) <= length else f'{name[:length]}…'
  return ''.join(character if character.isprintable() else
                 character.encode('unicode_escape').decode() for character in name)


def summary(report: dict) -> str:
  """Returns some lines of figures, then the warnings, the gravest last."""
  return '\n'.join([*_figures(report), *_warnings(report['warnings'])])


def hours(seconds: float) -> str:
  """Returns '2 h 05 min', or '3 min 20 s' of less than an hour."""
  seconds = round(seconds)
  if seconds >= 3600:
    return f'{seconds // 3600:,} h {seconds % 3600 // 60:02d} min'
  return f'{seconds // 60} min {seconds % 60:02d} s'


def bins(histogram: dict) -> list[tuple[str, int]]:
  """Returns [('10 to 20', count), ..]; the last bin may be open."""
  edges = ['' if edge is None else f'{edge:g}' for edge in histogram['edges']]
  names = [f'{start} to {end}' if end else f'{start} and more'
           for start, end in zip(edges, edges[1:], strict=False)]
  return list(zip(names, histogram['counts'], strict=True))


def figures(report: dict) -> list[tuple[str, str]]:
  """Returns [(what, figures in words), ..]."""
  totals, captions, leaks = report['totals'], report['captions'], report['leaks']
  duplicates = report['duplicates']['groups']
  rows = [
      ('files', f'{totals["files"]:,}, {totals["readable"]:,} readable, '
                f'{report["other_files"]:,} others ignored'),
      ('duration', f'{hours(totals["seconds"])} in all; {_spread(totals, "seconds", "s")}'),
      ('lengths, s', ', '.join(f'{name}: {count:,}' for name, count in bins(totals['durations'])
                               if count)),
      ('loudness', _spread(totals, 'loudness', 'LUFS')),
      ('peak', _spread(totals, 'peak', 'dBFS')),
      ('clipped', _spread(totals, 'clipped', '% of samples', 100)),
      ('silence', _spread(totals, 'silence', '% of the length', 100)),
      ('DC offset', _spread(totals, 'dc_offset', '% of full scale', 100)),
      ('sample rate', _named(totals['rate'], ' Hz')),
      ('channels', _named(totals['channels'])),
      ('format', _named(totals['encoding'])),
      ('splits', _named(totals['split']) if set(totals['split']) - {''} else 'none yet'),
      ('same sound', f'{len(duplicates):,} groups of {sum(map(len, duplicates)):,} files'),
      ('captions', _captions(captions)),
  ]
  if captions['count']:
    rows += [('language', _language(captions['language'])),
             ('same words', f'{len(captions["repeated"]):,} captions in several files, '
                            f'{len(captions["near"]):,} groups of nearly the same')]
  if leaks['musiccaps'] is not None:
    found = {part: len(names) for part, names in leaks['musiccaps'].items()}
    rows.append(('MusicCaps', f'{sum(found.values()):,} files are named after its clips '
                              f'({_named(found) or "none"})'))
  if leaks['evaluation']:
    rows.append(('evaluation', f'{leaks["evaluation"]["files"]:,} recordings, '
                               f'{len(leaks["evaluation"]["matches"]):,} matches'))
  return rows


def _figures(report: dict) -> Iterator[str]:
  yield printable(report['input'])
  for what, words in figures(report):
    yield f'  {what:12} {words}'


def _warnings(warnings: list[dict]) -> Iterator[str]:
  yield f'{len(warnings)} warnings' if warnings else 'no warnings'
  for warning in warnings:
    names = warning['names']
    yield f'warning: {warning["text"]} ({len(names):,})'
    for name in names[:_SHOWN]:
      yield f'    {printable(name)}'
    if len(names) > _SHOWN:
      yield f'    and {len(names) - _SHOWN:,} more'


def _spread(totals: dict, name: str, unit: str, scale: float = 1) -> str:
  found = {key: scale * value for key, value in totals['percentiles'][name].items()}
  if not found:
    return 'none'
  low, start, middle, end, high = (_short(found[key]) for key in ('0', '5', '50', '95', '100'))
  return f'median {middle} {unit}, 5% to 95%: {start} to {end}, all: {low} to {high}'


def _short(value: float) -> str:
  digits = 1 if abs(value) >= 10 or not value else min(4, 1 - math.floor(math.log10(abs(value))))
  return f'{value:,.{max(0, digits)}f}'


def _named(counts: dict[str, int], unit: str = '') -> str:
  return ', '.join(f'{printable(name)}{unit}: {count:,}' for name, count in counts.items())


def _captions(captions: dict) -> str:
  if not captions['count']:
    return 'none'
  lengths = [int(length) for length in captions['words']['lengths']]
  return (f'{captions["count"]:,} of {captions["files_with"]:,} files, {captions["distinct"]:,} '
          f'different; {captions["words"]["median"]:g} words in the median, {min(lengths)} to '
          f'{max(lengths)}')


def _language(language: dict) -> str:
  total = sum(language['counts'].values())
  if not total:
    return f'no caption has {language["min_words"]} words, which it takes to tell'
  return (f'{language["counts"].get("en", 0) / total:.1%} English of {total:,} captions with at '
          f'least {language["min_words"]} words, {language["by"]} ({_named(language["counts"])})')
