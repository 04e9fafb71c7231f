# CT in, organ mask out: docker build -t team .
FROM debian:bookworm-slim

# torch's version decides the CUDA generation and with it the oldest driver (README, "Drivers"); pip's index
# decides between CPU and CUDA builds.
ARG TORCH_VERSION=2.13.0
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

COPY requirements.txt /opt/requirements.txt
# A read-only root cannot compile: every .pyc is made here, or each case would pay for it. pip itself is not needed.
RUN sed -i "s/^torch==.*/torch==${TORCH_VERSION}/" /opt/requirements.txt \
 && python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --no-compile -r /opt/requirements.txt \
 && /opt/venv/bin/pip uninstall -y pip setuptools \
 && { /opt/venv/bin/python -m compileall -q -j 0 /opt/venv/lib || true; }  # some test data of packages is not Python

WORKDIR /workspace
COPY predict.sh ./
COPY app app
COPY weights weights
RUN /opt/venv/bin/python -m compileall -q app && mkdir inputs outputs && chmod 777 outputs

ENV FLARE_PYTHON=/opt/venv/bin/python \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1
CMD ["/bin/sh", "predict.sh"]
