"""Sampling with a KV cache: prompts read once for all of their samples, rows replaced as they end.

sampler = Sampler(model, stop_ids=renderer.stop_ids)
rollouts = sampler.sample(prompts, 8, SamplingParams(max_new_tokens=64), seed=0)
rollouts[0][3].ids, rollouts[0][3].logprobs, rollouts[0][3].ended
"""

from trimtab.rollout.params import Rollout, SamplingParams
from trimtab.rollout.sampler import Sampler

__all__ = ["Rollout", "Sampler", "SamplingParams"]
