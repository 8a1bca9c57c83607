{{/* Names and labels. Each component's helper takes a dict of `root` (the top context) and `component`. */}}

{{- define "llmos.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if has .Release.Name (list "llmos" "llmos-operator") -}}
llmos
{{- else -}}
{{- printf "%s-llmos" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llmos.name" -}}
{{- printf "%s-%s" (include "llmos.fullname" .root) .component -}}
{{- end -}}

{{- define "llmos.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "llmos.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: llmos
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "llmos.labels" -}}
{{ include "llmos.selector" . }}
{{ include "llmos.commonLabels" .root }}
{{- end -}}

{{/* Metadata of a CRD below its name: labels and, where asked for, the policy that keeps it. */}}
{{- define "llmos.crdMetadata" -}}
labels:
  {{- include "llmos.labels" (dict "root" . "component" "crds") | nindent 2 }}
{{- if .Values.crds.keep }}
annotations:
  helm.sh/resource-policy: keep
{{- end }}
{{- end -}}

{{- define "llmos.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- $account.name | default (ternary (include "llmos.name" .) "default" $account.create) -}}
{{- end -}}

{{- define "llmos.controlSecret" -}}
{{- .Values.operator.controlSecret | default (printf "%s-control" (include "llmos.fullname" .)) -}}
{{- end -}}

{{/* Address of a component's Service at a named port: its DNS name, or the variables Kubernetes gives to pods. */}}
{{- define "llmos.serviceUrl" -}}
{{- $name := include "llmos.name" . -}}
{{- if .root.Values.serviceLinks -}}
{{- $variable := $name | upper | replace "-" "_" -}}
{{- printf "http://$(%s_SERVICE_HOST):$(%s_SERVICE_PORT_%s)" $variable $variable (upper .portName) -}}
{{- else -}}
{{- printf "http://%s.%s.svc:%v" $name .root.Release.Namespace .port -}}
{{- end -}}
{{- end -}}

{{- define "llmos.operatorUrl" -}}
{{- .Values.operatorUrl | default (include "llmos.serviceUrl" (dict "root" . "component" "operator" "portName" "ingest" "port" 8090)) -}}
{{- end -}}

{{/* Image reference of a component; `digest` counts before the tag. */}}
{{- define "llmos.image" -}}
{{- $repository := printf "%s/llmos-%s" (.root.Values.image.registry | trimSuffix "/") .component -}}
{{- if .digest -}}
{{- printf "%s@%s" $repository .digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.root.Values.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
