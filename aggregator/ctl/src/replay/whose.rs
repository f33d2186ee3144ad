//! Whose a metric is: what SDKs, Kubernetes, Docker and Prometheus call a service, its replica and its machine. Pure.

/// Names of a service, the best first. A name of a pod carries its deployment's.
const SERVICES: [&str; 12] = [
    "service.name",
    "k8s.deployment.name",
    "k8s.statefulset.name",
    "k8s.daemonset.name",
    "com.docker.compose.service",
    "container_label_com_docker_compose_service",
    "app.kubernetes.io/name",
    "k8s.pod.labels.app",
    "k8s.pod.label.app",
    "app",
    "deployment",
    "workload",
];
const PODS: [&str; 4] = ["k8s.pod.name", "pod", "pod_name", "kubernetes_pod_name"];
const CONTAINERS: [&str; 5] = ["k8s.container.name", "container.name", "container", "container_name", "name"];

/// Names of a replica, the best first.
const INSTANCES: [&str; 9] = [
    "service.instance.id",
    "container.id",
    "k8s.pod.name",
    "k8s.pod.uid",
    "pod",
    "pod_name",
    "kubernetes_pod_name",
    "container.name",
    "container",
];

/// Names of a machine, the best first.
const HOSTS: [&str; 6] =
    ["host.name", "k8s.node.name", "node", "kubernetes_node", "nodename", "kubernetes_io_hostname"];

/// Letters and digits that Kubernetes draws names from: no vowels, and nothing that looks like another.
const DRAWN: &str = "bcdfghjklmnpqrstvwxz2456789";

type Attributes = [(String, String)];

/// The service.
pub fn service(attributes: &Attributes) -> Option<String> {
    let named = first(attributes, &SERVICES).filter(|name| !name.starts_with("unknown_service"));
    named
        .map(str::to_owned)
        .or_else(|| first(attributes, &PODS).map(|pod| workload(pod).to_owned()))
        .or_else(|| first(attributes, &CONTAINERS).filter(|name| *name != "POD").map(str::to_owned))
}

/// The replica.
pub fn instance(attributes: &Attributes) -> Option<String> {
    first(attributes, &INSTANCES).map(str::to_owned)
}

/// The machine.
pub fn host(attributes: &Attributes) -> Option<String> {
    first(attributes, &HOSTS).map(str::to_owned)
}

fn first<'a>(attributes: &'a Attributes, names: &[&str]) -> Option<&'a str> {
    let of = |name: &str| attributes.iter().find(|(key, text)| key == name && !text.is_empty());
    names.iter().find_map(|name| of(name)).map(|(_, text)| text.as_str())
}

/// What a pod is a replica of: `cart-5d9f8c7b6-x2x9z` and `cart-0` are of `cart`.
pub fn workload(pod: &str) -> &str {
    let is_drawn = |part: &str| part.chars().all(|c| DRAWN.contains(c));
    let Some((rest, last)) = pod.rsplit_once('-') else { return pod };
    if !last.is_empty() && last.chars().all(|c| c.is_ascii_digit()) && last.len() <= 3 {
        return rest; // of a stateful set
    }
    if last.len() != 5 || !is_drawn(last) {
        return pod;
    }
    match rest.rsplit_once('-') {
        Some((base, hash)) if (6..=10).contains(&hash.len()) && is_drawn(hash) => base,
        _ => rest, // of a daemon set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn pods_carry_the_name_of_what_they_are_replicas_of() {
        for (pod, want) in [
            ("cart-5d9f8c7b6-x2x9z", "cart"),
            ("ts-order-service-6c4b8d7f9c-b2k4d", "ts-order-service"),
            ("redis-0", "redis"),
            ("fluentd-x2x9z", "fluentd"),
            ("cart", "cart"),
            ("front-end", "front-end"),
            ("user-db", "user-db"),
        ] {
            assert_eq!(workload(pod), want);
        }
    }

    #[test]
    fn the_best_name_wins_whatever_the_order() {
        let all = attributes(&[
            ("k8s.pod.name", "cart-5d9f8c7b6-x2x9z"),
            ("k8s.container.name", "server"),
            ("service.name", ""),
        ]);
        assert_eq!(service(&all).as_deref(), Some("cart"));
        assert_eq!(instance(&all).as_deref(), Some("cart-5d9f8c7b6-x2x9z"));
        let docker =
            attributes(&[("container.name", "cart"), ("container.id", "7"), ("service.name", "unknown_service:java")]);
        assert_eq!((service(&docker).as_deref(), instance(&docker).as_deref()), (Some("cart"), Some("7")));
        assert_eq!(service(&attributes(&[("container", "POD")])), None);
        assert_eq!(host(&attributes(&[("k8s.node.name", "n"), ("host.name", "h")])).as_deref(), Some("h"));
    }
}
