# syntax=docker/dockerfile:1
# One file, four images: operator, agent, gateway, runtime.
#
#   docker build --target operator -t ghcr.io/llmos-dev/llmos-operator:0.1.0 .
#
# Dependencies come from requirements/<process>.lock by hash, as wheels: nothing is compiled and no compiler is needed.
# Releases pin the base as well: --build-arg PYTHON_DIGEST=sha256:…
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG PYTHON_DIGEST=""

# ---- base: what every image stands on
FROM ${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS base
ENV LANG=C.UTF-8 \
    HOME=/tmp \
    PATH=/opt/llmos/bin:$PATH \
    PYTHONPATH=/opt/llmos/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# ---- build: an environment per process
FROM base AS build
WORKDIR /src
RUN python -m venv --without-pip /opt/llmos
COPY scripts/image-env.sh .
COPY llmos_operator /opt/llmos/app/llmos_operator

FROM build AS build-operator
COPY requirements/operator.lock .
RUN ./image-env.sh operator operator.lock /opt/llmos /opt/llmos/app

FROM build AS build-agent
COPY requirements/agent.lock .
RUN ./image-env.sh agent agent.lock /opt/llmos /opt/llmos/app

FROM build AS build-gateway
COPY requirements/gateway.lock .
RUN ./image-env.sh gateway gateway.lock /opt/llmos /opt/llmos/app

FROM build AS build-runtime
COPY requirements/runtime.lock .
RUN ./image-env.sh runtime runtime.lock /opt/llmos /opt/llmos/app

# ---- final: the interpreter without its installer, a user that is nobody. The official image brings a standard library that is
# not compiled: every start would compile what it imports, since nothing can be written there.
FROM base AS final
RUN python -m pip uninstall --yes --quiet --root-user-action=ignore setuptools wheel pip && \
    python -c 'import compileall, os, re, sys; \
               sys.exit(not compileall.compile_dir(os.path.dirname(os.__file__), quiet=1, rx=re.compile(sys.argv[1])))' \
    '/(distutils|encodings|ensurepip|idlelib|lib2to3|msilib|pydoc_data|site-packages|test|tests|tkinter|turtledemo|unittest)/'
COPY LICENSE /licenses/LICENSE
WORKDIR /tmp
USER 65532:65532
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="LLMOS" \
      org.opencontainers.image.source="https://github.com/llmos-dev/llmos-operator"
ENTRYPOINT ["python", "-m", "llmos_operator"]

FROM final AS operator
COPY --from=build-operator /opt/llmos /opt/llmos
LABEL org.opencontainers.image.title="llmos-operator" \
      org.opencontainers.image.description="Schedules model workloads on GPUs"
EXPOSE 8080 8090
CMD ["operator"]

FROM final AS agent
COPY --from=build-agent /opt/llmos /opt/llmos
LABEL org.opencontainers.image.title="llmos-agent" \
      org.opencontainers.image.description="Measures the GPUs of a node"
EXPOSE 8080
CMD ["agent"]

FROM final AS gateway
COPY --from=build-gateway /opt/llmos /opt/llmos
LABEL org.opencontainers.image.title="llmos-gateway" \
      org.opencontainers.image.description="One OpenAI-style endpoint for all model workloads"
EXPOSE 8000 8080
CMD ["gateway"]

# The wheels of torch bring the CUDA libraries; the driver's come from the node's container runtime.
FROM final AS runtime
COPY --from=build-runtime /opt/llmos /opt/llmos
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MALLOC_ARENA_MAX=2
LABEL org.opencontainers.image.title="llmos-runtime" \
      org.opencontainers.image.description="Loads, quantises and serves one model"
EXPOSE 8000 8001
CMD ["runtime"]
