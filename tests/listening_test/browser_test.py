"""Raters with a real browser: keyboard and phone, a reload in the middle, a browser that was closed."""

import json
import shutil
import subprocess
import sys

import pytest

pytest.importorskip('selenium')

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

NUM_ITEMS = 2
SECONDS = 0.7
CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='needs chromium and chromedriver')]


class Browser:
  """A headless Chromium on one question after the other."""

  def __init__(self, profile, phone=False):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu',
                 '--window-size=1280,900', '--mute-audio', f'--user-data-dir={profile}'):
      options.add_argument(flag)
    if phone:
      options.add_experimental_option('mobileEmulation', {
          'deviceMetrics': {'width': 390, 'height': 844, 'pixelRatio': 2.0, 'touch': True}})
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))

  def __getitem__(self, selector):
    return self.driver.find_element(By.CSS_SELECTOR, selector)

  def until(self, condition):
    # A page may be replaced while it is looked at.
    waiting = WebDriverWait(self.driver, 60, 0.05, [StaleElementReferenceException])
    return waiting.until(lambda _: condition())

  def task(self):
    return self['input[name=task]'].get_attribute('value')

  def text(self, selector):
    return self[selector].text

  def opened(self):
    """Whether an answer can be given."""
    return bool(self.driver.find_elements(By.CSS_SELECTOR, 'fieldset:enabled'))

  def start(self, url):
    self.driver.get(url)
    self['button.primary'].click()
    self.until(lambda: self.driver.find_elements(By.ID, 'answer'))

  def keys(self, *keys):
    webdriver.ActionChains(self.driver).send_keys(*keys).perform()

  def gone(self, task):
    """Waits for the page after a question."""
    self.until(lambda: 'Thank you' in self.driver.title or (
        self.driver.find_elements(By.NAME, 'task') and self.task() != task))

  def close(self):
    """Returns the console's warnings and errors: what the content security policy blocked, say."""
    said = [each for each in self.driver.get_log('browser') if each['level'] in ('WARNING', 'SEVERE')]
    self.driver.quit()
    return said


def answer_by_keyboard(browser, key):
  """Listens and answers without a mouse."""
  task = browser.task()
  browser.keys('3', Keys.ENTER)  # too early: nothing happens
  assert not browser.opened() and browser.task() == task
  browser.keys(Keys.SPACE)
  browser.until(lambda: browser.text('#play_a') == 'Pause A')
  browser.until(lambda: browser.text('#heard_a') == 'heard' and browser.text('#play_a') == 'Play A')
  assert not browser.opened()
  browser.keys(Keys.SPACE)
  browser.until(lambda: browser.text('#heard_b') == 'heard' and browser.opened())
  assert not browser['#answer button'].is_enabled()
  browser.keys(key)
  assert browser[f'input[name=answer][value="{key}"]'].is_selected()
  browser.keys(Keys.ENTER)
  browser.gone(task)


def answer_by_touch(browser, number):
  task = browser.task()
  for side in 'ab':
    browser[f'#play_{side}'].click()
    browser.until(lambda side=side: browser.text(f'#heard_{side}') == 'heard')
  browser.until(browser.opened)
  browser[f'.answer:nth-of-type({number}) input'].click()
  browser['#answer button'].click()
  browser.gone(task)


def test_two_raters_answer_everything_and_one_reloads(trial, tmp_path):
  flags = trial.make_test(tmp_path, NUM_ITEMS, SECONDS)
  with trial.serving(flags) as (url, _):
    one = Browser(tmp_path / 'one')
    one.start(url)
    first = one.task()
    one['#play_a'].click()
    one.until(lambda: one.text('#heard_a') == 'heard')
    one.driver.refresh()
    assert one.task() == first and one.text('#heard_a') == 'heard'  # it need not be heard again
    one.driver.refresh()
    one['#play_b'].click()
    one.until(one.opened)
    one.keys('1')
    one['#answer button'].click()
    one.gone(first)
    second = one.task()
    assert 'Question 2' in one.driver.title and not one.close()

    one = Browser(tmp_path / 'one')  # the browser was closed
    one.driver.get(url)
    assert one.task() == second != first
    answer_by_keyboard(one, '5')
    assert 'You have answered 2 questions' in one.driver.page_source
    one.driver.back()
    one.until(lambda: 'Thank you' in one.driver.title)  # an old question does not come back
    assert not one.close()

    two = Browser(tmp_path / 'two', phone=True)
    two.start(url)
    for number in (3, 2):
      assert two.driver.execute_script(
          'return document.documentElement.scrollWidth') == 390  # nothing sticks out
      assert '<b>Calm</b> & "slow" piece_' in two.text('#caption')
      answer_by_touch(two, number)
    assert 'Thank you' in two.driver.title
    two.driver.get(f'{url}/results')
    two['#token'].send_keys(trial.TOKEN)
    two['button.primary'].click()
    two.until(lambda: 'Answers: 4. Raters: 2. Captions: 2.' in two.driver.page_source)
    assert not two.close()

  done = subprocess.run(
      [sys.executable, str(trial.ROOT / 'tools' / 'listening_test.py'), 'report',
       f'--database={tmp_path}/test.sqlite', f'--json={tmp_path}/wins.json'],
      capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'wins.json').read_text())
  assert (found['num_answers'], found['num_raters'], found['num_captions']) == (4, 2, 2)
  assert [sum(system[name] for system in found['systems']) for name in ('wins', 'losses', 'ties')] == [
      3, 3, 2]
  assert sorted(rater['answers'] for rater in found['raters']) == [2, 2]
