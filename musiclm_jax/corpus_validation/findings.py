"""Sums over a corpus, and what in it deserves a warning."""

import collections
from collections.abc import Iterable

import numpy as np

from musiclm_jax import audio, prepare_audio

CLIPPED = 0.001  # share of samples
SILENT = 0.5  # share of the length
DC_OFFSET = 0.01  # of full scale
QUIET = -45.0  # LUFS
MISSING = 0.01  # share of what a header promises
OTHER_LANGUAGES, ENGLISH = 0.1, 0.5  # shares of captions; lists of tags are in none for sure
DURATIONS = (0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)  # s, where bins begin
_PERCENTILES = (0, 5, 50, 95, 100)


def totals(files: list[dict]) -> dict:
  """Returns counts, hours, percentiles and histograms of measured files."""
  read = [file for file in files if not file['error']]
  values = {name: [file[name] for file in read if file[name] is not None]
            for name in ('seconds', 'loudness', 'peak', 'clipped', 'silence', 'dc_offset')}
  return {
      'files': len(files), 'readable': len(read), 'seconds': float(sum(values['seconds'])),
      'percentiles': {
          name: dict(zip(map(str, _PERCENTILES),
                         np.percentile(each, _PERCENTILES).tolist() if each else [], strict=False))
          for name, each in values.items()},
      'durations': _histogram(values['seconds'], [*DURATIONS, np.inf]),
      'loudness': _histogram(np.clip(values['loudness'], -60, -0.01), np.arange(-60, 1, 3)),
      'peak': _histogram(np.clip(values['peak'], -30, 2.99), np.arange(-30, 4, 3)),
      'silence': _histogram(values['silence'], [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.01]),
      **{name: _counts(file[name] for file in read)
         for name in ('rate', 'channels', 'encoding', 'split')},
  }


def warnings(report: dict) -> list[dict]:
  """Returns [{'kind', 'text', 'names': [str, ..]}, ..], the gravest last."""
  found = [*_of_captions(report['captions']), *_of_files(report['files']),
           *_of_sounds(report['duplicates'], report['leaks'])]
  return [{'kind': kind, 'text': text, 'names': names} for kind, text, names in found if names]


def _of_files(files: list[dict]):
  def those(wanted, show=lambda file: ''):
    return [f'{file["name"]}{show(file)}' for file in files if not file['error'] and wanted(file)]

  yield 'low rate', (
      f'files have a sample rate below {audio.SAMPLE_RATE:,} Hz: they lack high frequencies'
  ), those(lambda file: file['rate'] < audio.SAMPLE_RATE, lambda file: f': {file["rate"]:,} Hz')
  yield 'dc offset', f'files have a DC offset above {DC_OFFSET:.0%} of full scale', those(
      lambda file: file['dc_offset'] > DC_OFFSET, lambda file: f': {file["dc_offset"]:.1%}')
  yield 'quiet', f'files are quieter than {QUIET:.0f} LUFS', those(
      lambda file: file['loudness'] is not None and file['loudness'] < QUIET,
      lambda file: f': {file["loudness"]:.1f} LUFS')
  yield 'clipped', f'files are clipped in more than {CLIPPED:.1%} of their samples', those(
      lambda file: file['clipped'] > CLIPPED, lambda file: f': {file["clipped"]:.1%}')
  yield 'silent', f'files are silent for more than {SILENT:.0%} of their length', those(
      lambda file: file['silence'] > SILENT, lambda file: f': {file["silence"]:.0%}')
  yield 'short', f'files are shorter than {prepare_audio.MIN_SECONDS} s and will be left out', those(
      lambda file: file['seconds'] < prepare_audio.MIN_SECONDS,
      lambda file: f': {file["seconds"]:.2f} s')
  yield 'broken off', 'files hold less than their headers say', those(
      lambda file: file['missing'] > MISSING, lambda file: f': {file["missing"]:.0%} is missing')
  yield 'unreadable', 'files cannot be read', [
      f'{file["name"]}: {file["error"]}' for file in files if file['error']]


def _of_captions(captions: dict):
  language = captions['language']
  told, english = sum(language['counts'].values()), language['counts'].get('en', 0)
  if captions['problem']:
    yield 'captions table', 'table of captions cannot be used', [captions['problem']]
  yield 'near captions', 'groups of captions are nearly the same', [
      ' = '.join(group) for group in captions['near']]
  yield 'repeated captions', 'captions are those of several files', [
      f'{each["caption"]}: {len(each["files"])} files' for each in captions['repeated']]
  if len(language['not_english']) > OTHER_LANGUAGES * told:
    yield 'language', f'captions are not in English, {language["by"]}', language['not_english']
  elif english < ENGLISH * told:
    yield 'language', 'captions of which few are surely English', [
        f'{english:,} of {told:,}, {language["by"]}']
  yield 'empty captions', 'captions are empty', captions['empty']
  yield 'captions without file', 'captions name a file that is not there', captions['without_file']
  if captions['count']:
    yield 'files without caption', 'files have no caption', captions['files_without']


def _of_sounds(duplicates: dict, leaks: dict):
  yield 'duplicates', 'groups of files hold the same recording', [
      ' = '.join(group) for group in duplicates['groups']]
  yield 'across splits', ('groups of the same recording are in several splits: what is trained on '
                          'would be tested on'), [' = '.join(g) for g in duplicates['across_splits']]
  for part, of in (('train', "AudioSet's train split"), ('eval', "AudioSet's eval split"),
                   ('balanced', "AudioSet's eval split, and of the 1,000 balanced by genre")):
    names = (leaks['musiccaps'] or {}).get(part, {})
    yield f'musiccaps {part}', (
        f'files are named after clips of MusicCaps (of {of}): these train clips would leak into '
        'evaluation'), list(names)
  if leaks['evaluation']:
    yield 'evaluation unreadable', 'files for evaluation cannot be read, so nothing is compared', (
        leaks['evaluation']['unreadable'])
    yield 'evaluation', ('files sound like recordings for evaluation: these train clips would leak '
                         'into evaluation'), [
        f'{match["first"]} = {match["second"]} ({match["bit_errors"]:.0%} of bits differ)'
        for match in leaks['evaluation']['matches']]


def _histogram(values, edges) -> dict:
  counts, _ = np.histogram(values, edges)
  edges = [None if np.isinf(edge) else float(edge) for edge in edges]
  return {'edges': edges, 'counts': counts.tolist()}


def _counts(values: Iterable) -> dict[str, int]:
  return {str(value): count for value, count in collections.Counter(values).most_common()}
