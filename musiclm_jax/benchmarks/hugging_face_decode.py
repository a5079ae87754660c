"""L5. A decoder of transformers, in PyTorch, that decodes when asked: what ours is timed beside.

Run by path, in whatever Python has torch and transformers; it imports nothing else and downloads
nothing.  One line of JSON in, one out:

  {"vocab_size": 640, "num_layers": 4, ..}     ->  {"num_params": 2900000, ..}
  {"batch_size": 2, "prefix": 7, "tokens": 128, "temperature": 1.0}  ->  {"seconds": 0.5}
"""

import json
import os
import sys
import time


def serve(prepare) -> None:
  """Answers the lines of stdin on stdout; what fails is {"error": one line}.

  prepare: of the first line's value, returns (its answer, the function that answers the others).
  """
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no answer
  answer = None
  for line in sys.stdin:
    try:
      if answer is None:
        reply, answer = prepare(json.loads(line))
      else:
        reply = answer(json.loads(line))
    except Exception as error:  # whatever it is, the one who asked waits for a line
      reply = {'error': ' '.join(f'{type(error).__name__}: {error}'.split())}
    print(json.dumps(reply), file=answers, flush=True)


def prepare(spec):
  """Returns ({'num_params', 'dtype', 'device', 'versions'}, function that decodes) of a spec.

  A spec has the fields of LlamaConfig that differ, 'dtype' and 'threads'; weights are random.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    return {'error': f"{sys.executable} has no {error.name}: pip install 'musiclm-jax[parity]' there,"
                     ' or name a Python that has it with --hugging_face_python'}, None
  torch.manual_seed(0)
  torch.set_num_threads(spec.pop('threads'))
  dtype = getattr(torch, spec.pop('dtype'))
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  config = transformers.LlamaConfig(**spec, bos_token_id=1, eos_token_id=None, pad_token_id=0)
  model = transformers.LlamaForCausalLM(config).to(device, dtype).eval()

  def decode(request):
    batch_size, prefix, tokens = (request[name] for name in ('batch_size', 'prefix', 'tokens'))
    sampled = request['temperature'] > 0
    choice = {'temperature': request['temperature'], 'top_k': 0, 'top_p': 1.0} if sampled else {}
    ids = torch.randint(config.vocab_size, (batch_size, prefix), device=device)
    start = time.perf_counter()
    with torch.inference_mode():
      made = model.generate(
          ids, attention_mask=torch.ones_like(ids), cache_implementation='static',
          max_new_tokens=tokens, min_new_tokens=tokens, do_sample=sampled, **choice)
    if device == 'cuda':
      torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if tuple(made.shape) != (batch_size, prefix + tokens):
      raise ValueError(f'generate made ids of shape {list(made.shape)}, wanted '
                       f'{[batch_size, prefix + tokens]}')
    return {'seconds': seconds}

  return {
      'num_params': sum(each.numel() for each in model.parameters()),
      'dtype': str(dtype).removeprefix('torch.'),
      'device': torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
      'versions': f'transformers {transformers.__version__}, torch {torch.__version__}',
  }, decode


if __name__ == '__main__':
  serve(prepare)
