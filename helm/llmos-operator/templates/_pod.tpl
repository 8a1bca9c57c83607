{{/* Parts of the three pod templates. All take a dict of `root`, `component` and `values` (the component's values). */}}

{{- define "llmos.podMetadata" -}}
annotations:
  checksum/config: {{ include (printf "llmos.%sConfig" .component) .root | sha256sum }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "llmos.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "llmos.podBasics" -}}
serviceAccountName: {{ include "llmos.serviceAccount" . }}
automountServiceAccountToken: true
enableServiceLinks: {{ .root.Values.serviceLinks }}
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- /* A label removed with null comes back as null when Helm reuses the values of a release. */}}
{{- $nodes := dict }}
{{- range $label, $value := .values.nodeSelector }}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $nodes $label $value }}{{ end }}
{{- end }}
{{- with $nodes }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.topologySpreadKey }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "llmos.selector" $ | nindent 8 }}
{{- end }}
{{- end -}}

{{- define "llmos.containerBasics" -}}
name: {{ .component }}
image: {{ include "llmos.image" (dict "root" .root "component" .component "digest" .values.imageDigest) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: [{{ .component }}, --config=/etc/llmos/config/config.yaml]
securityContext:
  {{- toYaml (merge (dict) (.security | default dict) .root.Values.containerSecurityContext) | nindent 2 }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
{{- end -}}

{{/* Variables that differ per pod; paths of mounted files are here too, so that only one place names them. */}}
{{- define "llmos.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- with .root.Values.bindHost }}
- name: LLMOS_HOST
  value: {{ . | quote }}
{{- end }}
{{- if ne .component "operator" }}
- name: LLMOS_OPERATOR_URL
  value: {{ include "llmos.operatorUrl" .root | quote }}
{{- end }}
{{- end -}}

{{/* Liveness asks the event loop, readiness what the process needs to be of use; startup waits for the first lists. */}}
{{- define "llmos.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: health}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: health}
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{- define "llmos.volumes" -}}
- name: config
  configMap:
    name: {{ include "llmos.name" . }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- end -}}

{{- define "llmos.volumeMounts" -}}
- {name: config, mountPath: /etc/llmos/config, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "llmos.serviceAccountObject" -}}
{{- if .values.serviceAccount.create }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "llmos.serviceAccount" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "llmos.labels" . | nindent 4 }}
  {{- with .values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end -}}

{{- define "llmos.configMapObject" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "llmos.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "llmos.labels" . | nindent 4 }}
data:
  config.yaml: |
    {{- include (printf "llmos.%sConfig" .component) .root | nindent 4 }}
{{- end -}}

{{- define "llmos.disruptionBudgetObject" -}}
{{- if and .values.podDisruptionBudget.enabled (gt (int .values.replicas) 1) }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "llmos.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "llmos.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "llmos.selector" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* Metrics of all of a component's pods, ready or not. */}}
{{- define "llmos.metricsServiceObject" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "llmos.name" . }}-metrics
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "llmos.labels" . | nindent 4 }}
    llmos.dev/metrics: "true"
spec:
  type: ClusterIP
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "llmos.selector" . | nindent 4 }}
  ports:
    - {name: health, port: 8080, targetPort: health}
{{- end -}}

{{/* A ClusterRole's or Role's binding to a component's ServiceAccount. `kind` is ClusterRole or Role. */}}
{{- define "llmos.bindingObject" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  name: {{ include "llmos.name" . }}
  {{- if eq .kind "Role" }}
  namespace: {{ .root.Release.Namespace }}
  {{- end }}
  labels:
    {{- include "llmos.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ include "llmos.name" . }}
subjects:
  - kind: ServiceAccount
    name: {{ include "llmos.serviceAccount" . }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}
