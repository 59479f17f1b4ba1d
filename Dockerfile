# The program with JAX for NVIDIA GPUs; docs/accelerators.md has the commands.
#   docker build --tag score-sde .
#   docker build --tag score-sde-test --target test .    (adds what the tests need)
# Another JAX, such as for CUDA 12 or for CPUs: --build-arg JAX="jax[cuda12]" or JAX=jax.
FROM nvidia/cuda:13.0.0-base-ubuntu24.04 AS base

# The libraries of CUDA come with JAX. Those of the image must not replace them.
ENV LD_LIBRARY_PATH="" \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# Ubuntu removes old versions of packages, so that pinned ones could not be installed later. Its
# home folders are private; Apptainer runs the code in this one as another user.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 score \
    && chmod 755 /home/score

WORKDIR /home/score/app
RUN chown score:score .
USER 10001

# Only a change of the requirements repeats this layer. JAX and the rest are resolved together, and
# `make` takes the environment for complete because of the file `installed`.
ARG JAX="jax[cuda13]"
COPY --chown=score:score requirements.txt ./
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir "${JAX}" -r requirements.txt \
    && touch .venv/installed
ENV PATH="/home/score/app/.venv/bin:${PATH}"

FROM base AS test
COPY --chown=score:score requirements-dev.txt ./
RUN pip install --no-cache-dir -r requirements-dev.txt && touch .venv/installed-dev
COPY --chown=score:score . .
CMD ["make", "test"]

FROM base AS run
COPY --chown=score:score . .
CMD ["make", "demo"]
