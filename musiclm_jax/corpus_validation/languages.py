"""Which language a caption is in: by py3langid where it is installed, else if it is English."""

import functools
import importlib.metadata
import re
from collections.abc import Callable, Iterable

MIN_WORDS = 5  # in fewer, "sad piano" say, there is too little to tell
UNSURE = 'unsure'
_MIN_CONFIDENCE = 0.4
# The others are rare in captions and often mistaken for their relatives, as Aragonese for Spanish.
_LANGUAGES = """
ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv ms nl no pl pt ro ru sk sl
sr sv ta te th tr uk ur vi zh
""".split()
# Function words that no caption of several words goes without, and that few languages share.
_ENGLISH = frozenset("""
a an and are as at be been but by can for from has have he her his in into is it its of on or over
she some that the their there these they this through to under was were which while who with without
""".split())
_MIN_ENGLISH = 0.12  # of the words


def detector() -> tuple[Callable[[str], str], str]:
  """Returns (a function of a text that returns 'en', 'de', .. or 'unsure', what it is in words)."""
  try:
    from py3langid import langid
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LANGUAGES)
  except (ImportError, AttributeError):  # the latter: a version before 0.4
    return _by_words, ('by English function words only; pip install py3langid tells other '
                       'languages apart')
  version = importlib.metadata.version('py3langid')
  return functools.partial(_by_library, identifier), f'by py3langid {version}'


def words(text: str) -> list[str]:
  """Returns the words of a text; of scripts without spaces each character is one."""
  return re.findall(r"[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:['\u2019][^\W_]+)*|"
                    r'[\u3040-\u30ff\u3400-\u9fff]', text)


def counts(texts: Iterable[str], detect: Callable[[str], str]) -> dict[str, list[str]]:
  """Returns {language: texts} of those that have enough words to tell."""
  found = {}
  for text in texts:
    if len(words(text)) >= MIN_WORDS:
      found.setdefault(detect(text), []).append(text)
  return found


def _by_library(identifier, text: str) -> str:
  language, confidence = identifier.classify(text[:2000])
  return language if confidence >= _MIN_CONFIDENCE else UNSURE


def _by_words(text: str) -> str:
  found = [word.lower() for word in words(text)]
  share = sum(word in _ENGLISH for word in found) / max(1, len(found))
  return 'en' if share >= _MIN_ENGLISH else UNSURE
