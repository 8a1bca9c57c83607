{{/* Settings files. What the chart knows comes first, the user's `config` overrides it key by key. */}}

{{- define "llmos.operatorConfig" -}}
{{- $image := include "llmos.image" (dict "root" . "component" "runtime" "digest" "") -}}
{{- $known := dict
  "log" (deepCopy .Values.log)
  "tracing" (dict "endpoint" .Values.tracing.endpoint "sampleRatio" .Values.tracing.sampleRatio)
  "lease" (dict "name" (include "llmos.name" (dict "root" . "component" "operator")))
  "runtime" (dict "image" $image "imagePullPolicy" .Values.image.pullPolicy)
  "holders" (dict
    "image" (include "llmos.image" (dict "root" . "component" "operator" "digest" .Values.operator.imageDigest))
    "imagePullPolicy" .Values.image.pullPolicy
    "owner" (include "llmos.name" (dict "root" . "component" "operator")))
  "agentAccount" (include "llmos.serviceAccount" (dict "root" . "component" "agent"))
  "gatewayAccount" (include "llmos.serviceAccount" (dict "root" . "component" "gateway"))
-}}
{{- with .Values.image.pullSecrets }}
{{- $names := list }}
{{- range . }}{{ $names = append $names .name }}{{ end }}
{{- $_ := set (index $known "holders") "pullSecrets" $names }}
{{- end }}
{{- if .Values.modelCache.enabled }}
{{- $_ := set (index $known "runtime") "modelCachePath" .Values.modelCache.hostPath }}
{{- end }}
{{- toYaml (mergeOverwrite $known (deepCopy .Values.operator.config)) -}}
{{- end -}}

{{- define "llmos.agentConfig" -}}
{{- $known := dict "log" (deepCopy .Values.log) -}}
{{- if .Values.modelCache.enabled }}
{{- $cache := dict "budget" .Values.modelCache.budget -}}
{{- with dig "sources" "hubEndpoint" "" .Values.operator.config }}{{ $_ := set $cache "hubEndpoint" . }}{{ end }}
{{- $_ := set $known "modelCache" $cache }}
{{- end }}
{{- toYaml (mergeOverwrite $known (deepCopy .Values.agent.config)) -}}
{{- end -}}

{{- define "llmos.gatewayConfig" -}}
{{- toYaml (mergeOverwrite (dict "log" (deepCopy .Values.log) "tracing" (dict "endpoint" .Values.tracing.endpoint "sampleRatio" .Values.tracing.sampleRatio)) (deepCopy .Values.gateway.config)) -}}
{{- end -}}
