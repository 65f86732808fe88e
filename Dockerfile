# Defectory in a container.
#
#   docker build --tag defectory .                                    CPU
#   docker build --tag defectory:cuda --build-arg VARIANT=cuda .      CUDA; run it with --gpus all
#
# Packages come from the index that PIP_INDEX_URL names, or from a wheelhouse in the build folder:
#   --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/source/wheelhouse
ARG VARIANT=cpu
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS install
# PyTorch's wheels bring the CUDA libraries they need; the host brings the driver.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY constraints.txt wheelhous[e] /source/wheelhouse/
COPY constraints.txt pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN python -m venv /opt/defectory \
    && /opt/defectory/bin/python -m pip install --constraint /source/constraints.txt /source

FROM python:${PYTHON}-slim AS base
COPY --from=install /opt/defectory /opt/defectory
ENV PATH=/opt/defectory/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
ENTRYPOINT ["defectory"]
CMD ["--help"]

FROM base AS cpu
# No GPU is looked for, whatever the host has.
ENV CUDA_VISIBLE_DEVICES=""

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${VARIANT}
