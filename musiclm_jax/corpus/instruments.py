"""L4. The players: General MIDI programs with the range they play in and what people call them."""

import dataclasses

# Of General MIDI programs, eight to a family, as the standard groups them.
FAMILIES = (
    'piano', 'chromatic percussion', 'organ', 'guitar', 'bass', 'strings', 'ensemble', 'brass',
    'reed', 'pipe', 'synth lead', 'synth pad', 'synth effects', 'ethnic', 'percussive',
    'sound effects')
_KIT_BANK = 128


@dataclasses.dataclass(frozen=True)
class Instrument:
  name: str
  program: int
  low: int
  high: int
  names: tuple[str, ...]  # how a listener may say it; the first is the plain name
  level: float = 1.0
  bank: int = 0  # 128 = drum kit

  @property
  def family(self) -> str:
    """Returns one of FAMILIES, or 'drums'."""
    return 'drums' if self.bank == _KIT_BANK else FAMILIES[self.program // 8]


# name | program | low | high | level | names
_TABLE = """
piano|0|28|96|1.0|piano,acoustic piano,grand piano
bright piano|1|32|96|1.0|piano,bright piano,upright piano
electric piano|4|36|88|1.1|electric piano,Rhodes,e-piano
dx piano|5|36|88|1.0|FM electric piano,digital piano,electric piano
harpsichord|6|36|84|0.9|harpsichord
clavinet|7|36|80|0.9|clavinet,funky clavinet
celesta|8|60|96|1.0|celesta
glockenspiel|9|72|100|0.8|glockenspiel,bells
music box|10|60|96|1.1|music box
vibraphone|11|53|89|1.0|vibraphone,vibes
marimba|12|48|90|1.1|marimba
xylophone|13|60|96|0.9|xylophone
organ|16|36|88|0.8|organ,Hammond organ,drawbar organ
rock organ|18|36|88|0.8|rock organ,distorted organ,organ
church organ|19|36|84|0.8|church organ,pipe organ
accordion|21|50|86|0.9|accordion
harmonica|22|60|86|0.95|harmonica,mouth harp
nylon guitar|24|40|80|1.1|nylon guitar,classical guitar,acoustic guitar
steel guitar|25|40|82|1.1|acoustic guitar,steel-string guitar,steel guitar
jazz guitar|26|40|82|1.1|jazz guitar,mellow electric guitar,hollow-body guitar
clean guitar|27|40|84|1.0|clean electric guitar,electric guitar
muted guitar|28|40|80|1.0|palm-muted guitar,muted electric guitar
overdriven guitar|29|40|84|0.8|overdriven guitar,electric guitar,crunchy guitar
distorted guitar|30|38|84|0.75|distorted guitar,heavily distorted guitar,fuzzy electric guitar
upright bass|32|28|55|1.2|upright bass,double bass,acoustic bass
electric bass|33|28|55|1.1|electric bass,bass guitar,e-bass
picked bass|34|28|55|1.1|picked bass,bass guitar,e-bass
fretless bass|35|28|55|1.1|fretless bass,bass guitar
slap bass|36|28|57|1.1|slap bass,slapped bass guitar
synth bass|38|26|52|1.0|synth bass,synthesizer bass
deep synth bass|39|24|50|1.0|deep synth bass,sub bass,synth bass
violin|40|55|96|0.95|violin,solo violin
viola|41|48|84|0.95|viola
cello|42|36|72|1.0|cello
double bass section|43|28|55|1.0|double basses,contrabass
tremolo strings|44|40|88|0.9|tremolo strings,trembling strings
pizzicato strings|45|40|88|1.1|pizzicato strings,plucked strings
harp|46|36|92|1.1|harp
timpani|47|38|55|1.0|timpani,kettledrums
strings|48|36|92|0.9|strings,string section,string orchestra
slow strings|49|36|90|0.9|slow strings,sustained strings,strings
synth strings|50|36|90|0.8|synth strings,string machine
choir|52|48|80|0.9|choir,wordless choir,vocal aahs
voice oohs|53|48|80|0.9|vocal oohs,wordless voices
trumpet|56|55|84|0.8|trumpet
trombone|57|40|72|0.85|trombone
tuba|58|28|55|1.0|tuba
muted trumpet|59|55|84|0.9|muted trumpet
french horn|60|43|74|0.95|french horn,horn
brass section|61|43|82|0.8|brass section,horn section,brass
synth brass|62|43|82|0.75|synth brass,analog brass
soprano sax|64|56|86|0.8|soprano saxophone,saxophone
alto sax|65|50|81|0.8|alto saxophone,saxophone,sax
tenor sax|66|46|76|0.8|tenor saxophone,saxophone,sax
oboe|68|58|88|0.85|oboe
bassoon|70|36|70|0.95|bassoon
clarinet|71|50|88|0.9|clarinet
piccolo|72|74|102|0.75|piccolo
flute|73|60|94|0.95|flute
recorder|74|62|92|0.9|recorder
pan flute|75|60|90|0.9|pan flute
whistle|78|64|92|0.7|whistle,whistling
square lead|80|45|96|0.6|square wave lead,pulse synth,8-bit synth
saw lead|81|40|96|0.6|saw synth lead,buzzing synth lead,sawtooth synth
synth pluck|84|45|96|0.65|synth pluck,plucky synth
warm pad|89|40|84|0.9|warm synth pad,synth pad,soft pad
poly synth|90|40|88|0.7|poly synth,synth chords,analog synth
choir pad|91|43|84|0.9|choir pad,airy synth pad
glass pad|92|43|84|0.9|glassy pad,bowed glass pad
halo pad|94|43|84|0.9|halo pad,shimmering pad
sweep pad|95|40|84|0.9|sweeping pad,evolving synth pad
sitar|104|48|80|0.9|sitar
banjo|105|48|86|1.0|banjo
kalimba|108|55|90|1.1|kalimba,thumb piano
fiddle|110|55|93|0.9|fiddle
steel drums|114|55|88|0.9|steel drums,steel pans
"""

_KITS = """
drums|0|drums,acoustic drums,drum kit
room drums|8|drums,roomy drums,drum kit
power drums|16|drums,powerful drums,hard-hitting drums
electronic drums|24|electronic drums,drum machine,digital drums
808 drums|25|808 drum machine,drum machine,electronic drums
jazz drums|32|jazz drums,drums,drum kit
brushed drums|40|brushed drums,brushes on the drums,drums played with brushes
orchestral percussion|48|orchestral percussion,orchestral drums
"""


def _read_tables() -> dict[str, Instrument]:
  found = {}
  for line in _TABLE.strip().splitlines():
    name, program, low, high, level, names = line.split('|')
    found[name] = Instrument(
        name, int(program), int(low), int(high), tuple(names.split(',')), float(level))
  for line in _KITS.strip().splitlines():
    name, program, names = line.split('|')
    found[name] = Instrument(name, int(program), 0, 127, tuple(names.split(',')), 1.0, _KIT_BANK)
  return found


INSTRUMENTS: dict[str, Instrument] = _read_tables()
