{{/* Where all names begin. */}}
{{- define "distserve.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "distserve.operator" -}}
{{ include "distserve.fullname" . }}-operator
{{- end }}

{{/* The one ClusterRole that the operator may bind. */}}
{{- define "distserve.gatewayRole" -}}
{{ include "distserve.fullname" . }}-gateway
{{- end }}

{{/* Of the Service, the Secret with its certificate, and what else the webhook needs. */}}
{{- define "distserve.webhook" -}}
{{ include "distserve.fullname" . }}-webhook
{{- end }}

{{- define "distserve.mountsCertificate" -}}
{{ and .Values.webhook.enabled (eq .Values.webhook.certificates "CertManager") }}
{{- end }}

{{/* The engines' NetworkPolicies know the operator by this name, so that it cannot be overridden. */}}
{{- define "distserve.selector" -}}
app.kubernetes.io/name: distserve-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Of pods: a new version of the chart alone restarts nothing. */}}
{{- define "distserve.podLabels" -}}
{{ include "distserve.selector" . }}
app.kubernetes.io/part-of: distserve
{{- end }}

{{- define "distserve.labels" -}}
{{ include "distserve.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Argument: a list of the root and one of .Values.images. */}}
{{- define "distserve.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.images.registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest -}}
{{- with $image.tag }}:{{ . }}{{ end }}@{{ $image.digest -}}
{{- else -}}
:{{ $image.tag | default $root.Values.images.tag | default $root.Chart.AppVersion -}}
{{- end -}}
{{- end }}

{{- define "distserve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "distserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the operator does in the namespaces that it keeps; docs/decisions/042-chart.md has the reasons. */}}
{{- define "distserve.rules" -}}
- apiGroups: [distserve.io]
  resources: [distservedeployments]
  verbs: [get, list, watch]
- apiGroups: [distserve.io]
  resources: [distservedeployments/status]
  verbs: [patch]
- # Owner references that block deletion need it where OwnerReferencesPermissionEnforcement is on.
  apiGroups: [distserve.io]
  resources: [distservedeployments/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets, deployments, controllerrevisions]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [""]
  resources: [services, serviceaccounts, podtemplates]
  verbs: [create, delete, get, list, patch, watch]
- # Traces and step times that a spec names, for its plan.
  apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
- # A deployment's key: made once, read by its name, never changed; its owner's deletion removes it.
  apiGroups: [""]
  resources: [secrets]
  verbs: [create, get]
- apiGroups: [""]
  resources: [pods]
  verbs: [delete, get, list, watch]
- # The gate of topology.fabricRequired.
  apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: [create, delete, get, list, patch, watch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [{{ include "distserve.gatewayRole" . }}]
  verbs: [bind]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors, prometheusrules]
  verbs: [create, delete, get, list, patch, watch]
- # With topology.whenNoFit Provision.
  apiGroups: [autoscaling.x-k8s.io]
  resources: [provisioningrequests]
  verbs: [create, delete, get, list, patch, watch]
- # What pods claim of accelerators, with accelerator.deviceClass.
  apiGroups: [resource.k8s.io]
  resources: [resourceclaimtemplates]
  verbs: [create, delete, get, list, patch, watch]
- # What all pods have claimed is not free.
  apiGroups: [resource.k8s.io]
  resources: [resourceclaims]
  verbs: [get, list, watch]
- # With fabric.computeDomain.
  apiGroups: [resource.nvidia.com]
  resources: [computedomains]
  verbs: [create, delete, get, list, patch, watch]
{{- if .Values.kueue.enabled }}
- # With topology.scheduler Kueue. What was asked of a queue is never changed.
  apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [create, delete, get, list, watch]
- # That its pods are ready, for Kueue's waitForPodsReady.
  apiGroups: [kueue.x-k8s.io]
  resources: [workloads/status]
  verbs: [patch]
{{- end }}
{{- if .Values.volcano.enabled }}
- # With topology.scheduler Volcano. Patched is since when a queue has let one in, and how many
  # a unit's pods are.
  apiGroups: [scheduling.volcano.sh]
  resources: [podgroups]
  verbs: [create, delete, get, list, patch, watch]
{{- end }}
{{- if .Values.kai.enabled }}
- # With topology.scheduler KAI. Patched is how many a unit's pods are.
  apiGroups: [scheduling.run.ai]
  resources: [podgroups]
  verbs: [create, delete, get, list, patch, watch]
{{- end }}
{{- if .Values.gangScheduling.enabled }}
- # With topology.scheduler GangScheduling.
  apiGroups: [scheduling.k8s.io]
  resources: [podgroups]
  verbs: [create, delete, get, list, patch, watch]
{{- end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* Argument: a list of the root, one of Auto, Always, Never, and the kind. */}}
{{- define "distserve.wanted" -}}
{{- $root := index . 0 -}}
{{- $when := index . 1 -}}
{{- if or (eq $when "Always") (and (eq $when "Auto") ($root.Capabilities.APIVersions.Has (index . 2))) }}true{{ end -}}
{{- end }}

{{/* Argument: a list of the root, a name, a namespace and a weight: lower ones are made before. The
     labels are not the operator's: the test's pod is in neither its Deployment nor its NetworkPolicy. */}}
{{- define "distserve.testMetadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
namespace: {{ index . 2 | quote }}
labels:
  app.kubernetes.io/name: distserve-test
  app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
  app.kubernetes.io/part-of: distserve
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
annotations:
  helm.sh/hook: test
  helm.sh/hook-weight: {{ index . 3 | quote }}
  # One that failed stays, for its log.
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
