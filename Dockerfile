# docker build -t dynsparse .       why it is made like this: docs/adr/containers.md
#
# BASE_IMAGE       any with Python 3.11 to 3.13 as python3 with its venv, bash, and apt if there are SYSTEM_PACKAGES
# SYSTEM_PACKAGES  a C++ compiler, with which torch.compile (train.compile) builds its kernels; "" leaves it out
# EXTRAS           extras of pyproject.toml to install beside train, by name; "" for none
#
# Where pip needs settings of its own, such as another index: --secret id=pip.conf,src=FILE. They stay out of the image.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# pyproject.toml changes more often than the list of packages in it, and only the list is to have them installed anew.
FROM ${BASE_IMAGE} AS requirements
WORKDIR /packages
ARG EXTRAS="report export"
COPY pyproject.toml ./
# hadolint ignore=SC2086
RUN python3 -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    extras = [project["optional-dependencies"][name] for name in ["train", *sys.argv[1:]]]; \
    print(*sum(extras, project["dependencies"]), sep="\n")' ${EXTRAS} > requirements.txt

FROM ${BASE_IMAGE} AS code
WORKDIR /dynsparse
COPY . .
# The clone may be for one user's eyes alone, and the image runs as another. Whoever that is can write runs/, and no
# bytecode of the rest.
RUN chmod -R u=rwX,go=rX . && mkdir data runs && chmod 1777 runs \
    && python3 -m compileall -q --invalidation-mode checked-hash .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="dynsparse" \
      org.opencontainers.image.description="Dynamic sparse training of convolutional networks on many GPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG SYSTEM_PACKAGES="g++"
# hadolint ignore=DL3008
RUN if [ -n "${SYSTEM_PACKAGES}" ]; then \
        apt-get update && apt-get install --yes --no-install-recommends ${SYSTEM_PACKAGES} \
        && apt-get clean && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /packages
COPY constraints.txt ./
COPY --from=requirements /packages/requirements.txt ./
# What has no wheel would be built with packages that no constraint holds.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/run/secrets/pip.conf \
    python3 -m venv /opt/venv \
    && PIP_CONFIG_FILE=/run/secrets/pip.conf /opt/venv/bin/pip install --disable-pip-version-check \
        --only-binary :all: --constraint constraints.txt --requirement requirements.txt
# video: the JPEG decoders in the hardware of data-centre GPUs. HOME and USER: so that any uid has them, also one that
# /etc/passwd does not know, and all that is written beside runs/ is written to /tmp.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/dynsparse \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=dynsparse \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
WORKDIR /dynsparse
USER 1000:1000
EXPOSE 6006
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m --retries=3 \
    CMD ["python3", "/dynsparse/launch/container/healthcheck.py"]
ENTRYPOINT ["/dynsparse/launch/container/entry.sh"]
CMD ["launch/local.sh", "--workers", "demo", "--", "--config", "configs/digits_dsr.yaml", "--overwrite"]
# Last, so that after a change of the code only this is made anew.
COPY --from=code /dynsparse ./
VOLUME ["/dynsparse/data", "/dynsparse/runs"]
