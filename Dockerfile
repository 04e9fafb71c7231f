# CT in, organ mask out: docker build -t team .
FROM debian:bookworm-slim

# torch's version decides the CUDA generation and with it the oldest driver (docs/images.md); every version has a
# lock, the newest also of its CPU build, which the image gets where pip's index has it.
ARG TORCH_VERSION=2.13.0
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

COPY locks /opt/locks
# Only files with the lock's hashes are installed; pip itself is not needed then, nor what is for compilers and the
# packages' own tests. A read-only root cannot compile: every .pyc is made here, or each case would pay for it.
RUN python3 -m venv /opt/venv \
 && if [ -f "/opt/locks/torch-${TORCH_VERSION}+cpu.txt" ] \
    && /opt/venv/bin/pip index versions torch 2>/dev/null | grep -qwF "${TORCH_VERSION}+cpu"; then cpu=+cpu; fi \
 && /opt/venv/bin/pip install --no-cache-dir --no-compile --require-hashes -r "/opt/locks/torch-${TORCH_VERSION}${cpu:-}.txt" \
 && /opt/venv/bin/pip uninstall -y pip setuptools \
 && cd /opt/venv/lib/python3*/site-packages \
 && rm -rf torch/include torch/test torch/bin/test_* torch/bin/protoc* nvidia/*/include \
 && find . \( -name tests -o -name '*.a' \) -prune -exec rm -rf {} + \
 && { /opt/venv/bin/python -m compileall -q -j 0 . || true; }  # torch has files for newer Pythons

WORKDIR /workspace
COPY predict.sh ./
COPY app app
COPY weights weights
RUN /opt/venv/bin/python -m compileall -q app && mkdir inputs outputs && chmod 777 outputs

LABEL org.opencontainers.image.title="Abdominal organs in CT" \
      org.opencontainers.image.description="Abdominal CT in, a mask of 13 organs out (FLARE22). Not a medical device." \
      org.opencontainers.image.version="1.0.0" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV FLARE_PYTHON=/opt/venv/bin/python \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1
CMD ["/bin/sh", "predict.sh"]
