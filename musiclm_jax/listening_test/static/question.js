'use strict';
// The players of a question: both clips must be heard before the answers open.

const form = document.getElementById('answer');
const fields = form.querySelector('fieldset');
const next = form.querySelector('button[type=submit]');
const status = document.getElementById('status');
const seconds = Number(form.dataset.seconds);
const share = Number(form.dataset.share);
const memory = 'heard ' + form.dataset.task;

// What was heard before a reload. Private windows may have no storage: then it is heard again.
function remembered() {
  try {
    return JSON.parse(localStorage.getItem(memory)) || {};
  } catch {
    return {};
  }
}

function remember() {
  try {
    for (const key of Object.keys(localStorage)) {
      if (key.startsWith('heard ') && key !== memory) localStorage.removeItem(key);
    }
    localStorage.setItem(memory, JSON.stringify(
      Object.fromEntries(clips.map((clip) => [clip.side, clip.heard]))));
  } catch { /* as above */ }
}

function playedSeconds(audio) {
  let sum = 0;
  for (let i = 0; i < audio.played.length; i++) sum += audio.played.end(i) - audio.played.start(i);
  return sum;
}

class Clip {
  constructor(section, before) {
    this.section = section;
    this.side = section.dataset.side;
    this.name = this.side.toUpperCase();
    this.audio = section.querySelector('audio');
    this.bar = section.querySelector('progress');
    this.text = section.querySelector('.text');
    this.note = section.querySelector('.heard');
    this.heard = Math.min(Number(before) || 0, seconds);
    section.querySelector('button').addEventListener('click', () => this.toggle());
    for (const event of ['play', 'pause', 'ended', 'timeupdate']) {
      this.audio.addEventListener(event, () => update(event !== 'timeupdate'));
    }
    this.audio.addEventListener('error', () => {
      status.textContent = 'Clip ' + this.name + ' could not be loaded. Please reload the page.';
    });
  }

  get done() {
    return this.heard >= share * seconds - 0.2;
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended;
  }

  toggle() {
    if (this.playing) {
      this.audio.pause();
      return;
    }
    for (const other of clips) if (other !== this) other.audio.pause();
    last = this;
    this.audio.play().catch(() => {});
  }

  show() {
    this.heard = Math.max(this.heard, Math.min(playedSeconds(this.audio), seconds));
    this.bar.value = Math.min(1, this.audio.currentTime / seconds);
    this.section.classList.toggle('playing', this.playing);
    this.section.classList.toggle('done', this.done);
    this.text.textContent = (this.playing ? 'Pause ' : 'Play ') + this.name;
    this.note.textContent = this.done ? 'heard' :
      this.heard > 0 ? Math.floor(100 * this.heard / seconds) + '% heard' : 'not heard yet';
  }
}

let last = null;  // the clip that was started last
let open = false;
const before = remembered();
const clips = [...document.querySelectorAll('.clip')].map(
  (section) => new Clip(section, before[section.dataset.side]));

function update(keep) {
  for (const clip of clips) clip.show();
  if (keep) remember();
  if (!open && clips.every((clip) => clip.done)) {
    open = true;
    remember();
    fields.disabled = false;
    status.textContent = 'Your answer:';
  }
  next.disabled = !open || !form.querySelector('input[name=answer]:checked');
}

// Space: pause what plays, go on with what was paused, else the clip whose turn it is.
function space() {
  const playing = clips.find((clip) => clip.playing);
  if (playing) return playing.toggle();
  if (last && !last.audio.ended && last.audio.currentTime > 0) return last.toggle();
  const waiting = clips.find((clip) => !clip.done);
  (waiting || clips.find((clip) => clip !== last)).toggle();
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const target = event.target;
  const key = event.key.toLowerCase();
  if (key === ' ') {
    // A focused button does what it says; an unchosen answer gets chosen.
    if (target.matches('button, a, input[type=radio]:not(:checked)')) return;
    event.preventDefault();
    space();
  } else if (key === 'a' || key === 'b') {
    clips.find((clip) => clip.side === key).toggle();
  } else if (key >= '1' && key <= '5' && key.length === 1 && open) {
    const radio = form.querySelector('input[value="' + key + '"][name=answer]');
    radio.checked = true;
    radio.focus();
    update(false);
  } else if (key === 'enter' && !next.disabled && !target.matches('button, a')) {
    event.preventDefault();
    form.requestSubmit();
  }
});

let sent = false;
form.addEventListener('change', () => update(false));
form.addEventListener('submit', (event) => {
  if (sent) {
    event.preventDefault();
    return;
  }
  sent = true;
  for (const clip of clips) {
    clip.audio.pause();
    form.elements['heard_' + clip.side].value = clip.heard.toFixed(2);
  }
});
window.addEventListener('pagehide', remember);
window.addEventListener('pageshow', (event) => {
  if (event.persisted) location.reload();  // come back to with the browser's Back: the question may be old
});
update(false);
