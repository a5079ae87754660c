"""L4. The words of the captions: genres, moods, uses, and the templates of every phrasing.

Templates under HELD_OUT caption only the test split, those under TRAIN only the training split.
A template is used when all its {slots} are known for the clip.
"""

GENRES = {
  'rock': 'rock song|rock track|electric guitar rock piece|rock instrumental',
  'metal': 'metal song|heavy metal track|metal instrumental|heavy metal piece',
  'pop': 'pop song|pop track|pop instrumental|catchy pop tune',
  'soul': 'soul song|soul track|R&B groove|soul ballad',
  'funk': 'funk track|funk groove|funk jam|funky song',
  'blues': 'blues song|blues track|blues shuffle|twelve-bar blues',
  'jazz': 'jazz song|swing jazz tune|jazz combo piece|jazz standard',
  'bossa nova': 'bossa nova|bossa nova song|Brazilian bossa nova tune|bossa nova piece',
  'latin': 'latin song|salsa track|Latin dance tune|Afro-Cuban song',
  'reggae': 'reggae song|reggae track|reggae groove|roots reggae tune',
  'country': 'country song|country track|country and western tune|country instrumental',
  'folk': 'folk song|folk tune|acoustic folk piece|traditional folk melody',
  'lo-fi hip hop': 'lo-fi hip hop beat|lofi beat|chillhop track|lo-fi hip hop instrumental',
  'house': 'house track|house music track|electronic dance track|EDM club track',
  'synthwave': 'synthwave track|retro synthwave song|80s style synth track|retrowave instrumental',
  'chiptune': 'chiptune|8-bit video game tune|chiptune track|retro video game track',
  'ambient': 'ambient piece|ambient soundscape|ambient track|drifting ambient piece',
  'solo piano': 'solo piano piece|classical piano piece|piano solo|piano instrumental',
  'string quartet': (
    'string quartet|string quartet piece|classical string quartet|chamber piece for strings'
  ),
  'orchestral': 'orchestral piece|cinematic orchestral track|film score|symphonic piece',
  'chamber': (
    'chamber music piece|classical duet|classical chamber piece|classical art song without words'
  ),
}
MOODS = {
  'happy': 'happy|cheerful|joyful|uplifting',
  'sad': 'sad|sorrowful|mournful|gloomy',
  'energetic': 'energetic|lively|driving|upbeat',
  'calm': 'calm|peaceful|soothing|gentle',
  'dark': 'dark|brooding|ominous|sinister',
  'dreamy': 'dreamy|ethereal|floating|hazy',
  'epic': 'epic|heroic|powerful|majestic',
  'romantic': 'romantic|tender|warm|loving',
  'tense': 'tense|suspenseful|nervous|uneasy',
  'playful': 'playful|bouncy|quirky|lighthearted',
  'melancholic': 'melancholic|wistful|bittersweet|pensive',
  'hopeful': 'hopeful|inspiring|optimistic|bright',
  'groovy': 'groovy|funky|danceable|infectious',
  'nostalgic': 'nostalgic|sentimental|yearning|longing',
  'aggressive': 'aggressive|angry|fierce|intense',
  'relaxed': 'relaxed|laid-back|mellow|easygoing',
  'mysterious': 'mysterious|enigmatic|strange|haunting',
}
USES = {
  'rock': 'a road trip video|a skateboarding video|the stage of a rock club|a sports montage',
  'metal': 'an action game|a mosh pit|a boss fight in a video game|a wrestling show',
  'pop': 'the radio|a feel-good advertisement|a summer party|a teenage comedy',
  'soul': 'a date night|a late evening in a bar|a love scene|a Sunday afternoon',
  'funk': 'a dance floor|a retro cop show|a block party|a roller disco',
  'blues': 'a smoky bar|a roadside diner|a late night drive|a juke joint',
  'jazz': 'a jazz club|a cocktail lounge|a restaurant|a noir movie',
  'bossa nova': 'a coffee shop|a beach bar|an elevator|a quiet dinner',
  'latin': 'a salsa class|a street carnival|a beach party|a dance show',
  'reggae': 'a beach|a summer barbecue|a lazy afternoon in the sun|a surf video',
  'country': 'a barn dance|a road movie|a rodeo|a front porch scene',
  'folk': 'a campfire|a walk in the countryside|a travel documentary|a renaissance fair',
  'lo-fi hip hop': (
    'studying|a rainy evening at home|a late night work session|a cozy bedroom stream'
  ),
  'house': 'a night club|a fashion show|a workout|a DJ set',
  'synthwave': (
    'a neon-lit night drive|a retro racing game|an 80s science fiction film|a cyberpunk game'
  ),
  'chiptune': 'an old video game|a platform game level|an arcade|a game menu',
  'ambient': 'meditation|a nature documentary|a spa|falling asleep',
  'solo piano': 'a recital|a silent film|a quiet evening|a ballet class',
  'string quartet': 'a wedding ceremony|a chamber concert|a period drama|a formal dinner',
  'orchestral': 'a movie trailer|a fantasy film|a video game cutscene|an adventure movie',
  'chamber': 'a salon concert|a costume drama|a gallery opening|a classical radio programme',
}
TEMPI = (
  (72, 'slow|very slow'),
  (95, 'slow to medium|moderately slow'),
  (118, 'medium|moderate'),
  (144, 'fast|quick'),
  (999, 'very fast|rapid'),
)
EFFECTS = {
  'lofi': 'vinyl crackle|a dusty record crackle',
  'chip': '8-bit sound|a crunchy low-bit sound',
}
DRUM_FEELS = {
  'machine': 'a programmed drum machine beat|a steady electronic beat',
  'human': 'a live drum groove|a human-sounding drum groove',
  'written': 'a steady drum beat|a drum kit keeping time',
}

TRAIN = {
  'tag': (
    '{mood} {genre}',
    '{genre}, {mood}',
    '{tempo} {genre} with {one}',
    '{genre} with {two}',
    '{mood} {genre}, {bpm} bpm',
    '{one}, {genre}, {mood}, {tempo} tempo',
    '{genre} in {key}',
    '{mood}, {tempo}, {two}',
    '{mood} {genre} for {use}',
    '{genre}: {all}',
  ),
  'sentence': (
    'A {mood} {genre} with {all}.',
    '{A_genre} featuring {two} at a {tempo} tempo.',
    'This is a {mood} {genre} played by {all}.',
    'A {tempo} {genre} where {lead} {lead_plays} the melody.',
    '{A_genre} with {lead} over {backing}.',
    'A {mood} instrumental at {bpm} bpm with {all}.',
    '{All} in a {mood} {genre}.',
    'A {mood} {genre} in {key} with {two}.',
    '{A_genre} that sounds {mood} and {mood2}, with {one}.',
    'Instrumental music: {all}, {mood} and {tempo}.',
    'A {tempo} {genre} built on {drums} and {bass}.',
    'A {mood} melody on {lead}, accompanied by {backing}.',
  ),
  'opening': (
    'This is an instrumental {genre}.',
    'A {mood} {genre} is playing.',
    'The song is a {tempo} {genre}.',
    'This {genre} contains {all}.',
    'The music features {all}.',
    'Here we have {a_genre} with {two}.',
    'The clip is {a_genre} of a {mood} kind.',
  ),
  'lead': (
    '{The_lead} {lead_plays} the main melody.',
    'The melody is carried by {lead}.',
    '{A_lead} {lead_takes} the lead on top.',
    'On top there is a {mood} tune played on {lead}.',
  ),
  'backing': (
    '{Backing_list} {backing_play} the accompaniment.',
    'It is accompanied by {backing}.',
    'In the background one can hear {backing}.',
    'The harmony comes from {backing}.',
  ),
  'rhythm': (
    'The rhythm section is {drums} with {bass}.',
    '{Drums} {drums_keep} the beat.',
    'There is {drum_feel}.',
    'The bass line is played on {bass}.',
    'The percussion is played on {drums}.',
  ),
  'no_drums': ('There are no drums.', 'No percussion is heard.', 'It is played without any drums.'),
  'mood': (
    'The mood is {mood} and {mood2}.',
    'It sounds {mood}.',
    'The atmosphere is {mood}.',
    'The overall feeling is {mood} and {mood2}.',
  ),
  'tempo': (
    'The tempo is {tempo}, around {bpm} bpm.',
    'The tempo is {tempo}.',
    'It is in {key}.',
    'The piece is in {metre} time with a {tempo} tempo.',
    'It moves at about {bpm} beats per minute.',
  ),
  'detail': (
    'The arrangement is {density}.',
    'The playing is {dynamics}.',
    'The music {shape}.',
    'There is {effect} on the recording.',
  ),
  'use': (
    'It could go with {use}.',
    'It would suit {use}.',
    'This song may be used for {use}.',
    'One can imagine it in the background of {use}.',
  ),
}
HELD_OUT = {
  'tag': (
    '{genre} on {one} ({mood})',
    '{mood} and {tempo}: {genre}',
    '{two}; {mood}',
    '{genre} / {mood} / {bpm} bpm',
    'music for {use}, {mood} {genre}',
  ),
  'sentence': (
    'What plays is a {mood} {genre}, with {two} in it.',
    '{Two} can be heard in this {tempo}, {mood} {genre}.',
    'Someone plays {lead} in a {mood} way while {backing_the} {backing_back} it.',
    'At {bpm} bpm, {all} {all_make} up this {genre}.',
    'You hear {a_genre}, {mood} in character and {tempo} in pace.',
  ),
  'opening': (
    'We are listening to {a_genre} without singing.',
    'In this recording, {all} {all_sound}.',
    'The recording presents a {mood}, {tempo} {genre}.',
  ),
  'lead': ('The tune belongs to {lead}.', 'One follows the line of {lead} first of all.'),
  'backing': (
    'Beneath it there is support from {backing}.',
    '{Backing_list} {backing_fill} in the chords.',
  ),
  'rhythm': (
    'The pulse comes from {drums}.',
    'Low notes are given by {bass}.',
    'One notices {drum_feel}.',
  ),
  'no_drums': ('Drums are absent.', 'Nobody plays any percussion here.'),
  'mood': ('It leaves a {mood} impression.', 'Its character is {mood}, even {mood2}.'),
  'tempo': (
    'The pace is {tempo}, close to {bpm} bpm.',
    'Its key is {key}.',
    'The speed is {tempo}.',
  ),
  'detail': (
    'The texture is {density}.',
    'The touch is {dynamics}.',
    'Over time it {shape}.',
    'One notices {effect}.',
  ),
  'use': ('A good fit would be {use}.', 'I would play this for {use}.'),
}
