"""A small classifier with hand-written gradients: the test problem of the references.

Two layers, 6-8-3, tanh between them, a scalar gain on the logits, softmax cross-entropy. The
parameters are a dict of float64 arrays of ranks 2, 1 and 0; the flat vector holds them in the
order of their sorted names, which is the order of `jax.flatten_util.ravel_pytree`.
"""

import numpy as np

INPUTS, HIDDEN, CLASSES = 6, 8, 3
SHAPES = {
    "bias_hidden": (HIDDEN,),
    "bias_output": (CLASSES,),
    "gain": (),
    "weight_hidden": (INPUTS, HIDDEN),
    "weight_output": (HIDDEN, CLASSES),
}

_ASNAQ = {
    "learning_rate": 0.1,
    "min_momentum": 0.1,
    "max_momentum": 0.8,
    "momentum_factor": 1.3,
    "memory_size": 2,
    "fisher_size": 8,
    "cycle_length": 4,
    "max_increase": 1.05,
    "eps": 1.0,
    "min_curvature": 1.0,
}
_ADAQN = {
    "learning_rate": 0.2,
    "memory_size": 3,
    "fisher_size": 8,
    "cycle_length": 4,
    "max_increase": 1.1,
    "eps": 1.0,
    "min_curvature": 1.0,
}
_ADAQN_RMS = {**_ADAQN, "learning_rate": 0.3, "memory_size": 2, "accumulator_decay": 0.9}

# Runs of 300 steps, batch k mod 12 at step k, in which everything happens that can: pairs are
# stored, refused and pushed out of the full ring, gradients pushed out of F, and averages
# restored. An error of 1e-14 in the first parameters grows no more than a hundredfold. Each
# entry is (name of the method, seed of `init` and `batches`, hyperparameters).
EVENTFUL_RUNS = {
    "adaqn": ("adaqn", 3, _ADAQN),
    "adaqn_rms": ("adaqn", 2, _ADAQN_RMS),
    "asnaq": ("asnaq", 3, _ASNAQ),
    "asnaq_rms": ("asnaq", 3, {**_ASNAQ, "accumulator_decay": 0.9}),
    "asnaq_single_gradient": ("asnaq", 3, {**_ASNAQ, "single_gradient": True}),
    "asnaq_backoff": ("asnaq", 3, {**_ASNAQ, "backoff": 0.9}),
    "asnaq_single_gradient_backoff": (
        "asnaq",
        3,
        {**_ASNAQ, "single_gradient": True, "backoff": 0.9},
    ),
}


def init(seed):
    """Random parameters, a dict of named float64 arrays."""
    generator = np.random.default_rng(seed)
    params = {name: generator.uniform(-0.5, 0.5, shape) for name, shape in SHAPES.items()}
    return {**params, "gain": np.array(1.0)}


def flatten(params):
    """The dict as one flat float64 vector."""
    return np.concatenate([np.ravel(params[name]) for name in SHAPES])


def unflatten(w):
    """The flat vector as a dict of named arrays."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    pieces = np.split(np.asarray(w), ends[:-1])
    return {
        name: piece.reshape(shape)
        for (name, shape), piece in zip(SHAPES.items(), pieces, strict=True)
    }


def batches(seed, count=12, size=8, noise=0.1):
    """Mini-batches of random inputs and one-hot labels that a random network assigned.

    Args:
      seed: seed of inputs, teacher and noise.
      count: number of batches.
      size: samples in each.
      noise: share of the labels that are replaced by random ones.

    Returns:
      A list of pairs (inputs, labels), of shapes (size, 6) and (size, 3).
    """
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(count * size, INPUTS))
    teacher = {name: generator.normal(size=shape) for name, shape in SHAPES.items()}
    scores = np.tanh(inputs @ teacher["weight_hidden"]) @ teacher["weight_output"]
    classes = np.argmax(scores, axis=1)
    random_classes = generator.integers(CLASSES, size=classes.size)
    classes = np.where(generator.uniform(size=classes.size) < noise, random_classes, classes)
    labels = np.eye(CLASSES)[classes]
    return list(zip(np.split(inputs, count), np.split(labels, count), strict=True))


def loss_of_dict(params, batch, xp=np):
    """Mean cross-entropy of a dict of parameters; `xp` is `numpy` or `jax.numpy`."""
    inputs, labels = batch
    hidden = xp.tanh(inputs @ params["weight_hidden"] + params["bias_hidden"])
    logits = params["gain"] * (hidden @ params["weight_output"] + params["bias_output"])
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    log_partition = xp.log(xp.sum(xp.exp(shifted), axis=1))
    return xp.mean(log_partition - xp.sum(labels * shifted, axis=1))


def loss(w, batch):
    """Mean cross-entropy of a flat vector of parameters, a float."""
    return float(loss_of_dict(unflatten(w), batch))


def grad(w, batch):
    """Gradient of `loss` by hand-written back-propagation, a flat vector."""
    inputs, labels = batch
    params = unflatten(w)
    hidden = np.tanh(inputs @ params["weight_hidden"] + params["bias_hidden"])
    scores = hidden @ params["weight_output"] + params["bias_output"]
    logits = params["gain"] * scores
    exponentials = np.exp(logits - np.max(logits, axis=1, keepdims=True))
    probabilities = exponentials / np.sum(exponentials, axis=1, keepdims=True)
    d_logits = (probabilities - labels) / len(inputs)
    d_scores = params["gain"] * d_logits
    d_hidden = (d_scores @ params["weight_output"].T) * (1.0 - hidden**2)
    return flatten(
        {
            "bias_hidden": np.sum(d_hidden, axis=0),
            "bias_output": np.sum(d_scores, axis=0),
            "gain": np.sum(d_logits * scores),
            "weight_hidden": inputs.T @ d_hidden,
            "weight_output": hidden.T @ d_scores,
        }
    )
