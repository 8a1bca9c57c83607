{{/* Settings files. What the chart knows comes first, the user's `config` overrides it key by key. */}}

{{- define "llmos.operatorConfig" -}}
{{- $image := include "llmos.image" (dict "root" . "component" "runtime" "digest" "") -}}
{{- $known := dict
  "log" (deepCopy .Values.log)
  "lease" (dict "name" (include "llmos.name" (dict "root" . "component" "operator")))
  "runtime" (dict "image" $image "imagePullPolicy" .Values.image.pullPolicy)
  "agentAccount" (include "llmos.serviceAccount" (dict "root" . "component" "agent"))
  "gatewayAccount" (include "llmos.serviceAccount" (dict "root" . "component" "gateway"))
-}}
{{- toYaml (mergeOverwrite $known (deepCopy .Values.operator.config)) -}}
{{- end -}}

{{- define "llmos.agentConfig" -}}
{{- toYaml (mergeOverwrite (dict "log" (deepCopy .Values.log)) (deepCopy .Values.agent.config)) -}}
{{- end -}}

{{- define "llmos.gatewayConfig" -}}
{{- toYaml (mergeOverwrite (dict "log" (deepCopy .Values.log)) (deepCopy .Values.gateway.config)) -}}
{{- end -}}
