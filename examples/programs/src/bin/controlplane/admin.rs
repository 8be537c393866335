//! What the control plane knows, as JSON and for people.

use std::fmt::Write as _;
use std::sync::PoisonError;

use hbone::xds::Publisher;
use hbone::xds::delta::Resources as _;
use hbone_programs::admin::Answer;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::Problems;

pub(crate) fn answer(path: &str, publisher: &Publisher, problems: &Problems) -> Answer {
    let told = |content_type, body| Answer { status: StatusCode::OK, content_type, body };
    match path {
        "/healthz/ready" => Answer::text(StatusCode::OK, "ready\n"),
        "/config_dump" => told("application/json", format!("{:#}\n", dump(publisher, problems))),
        "/" => told("text/html; charset=utf-8", page(&dump(publisher, problems))),
        _ => Answer::text(StatusCode::NOT_FOUND, "there are /, /config_dump and /healthz/ready\n"),
    }
}

/// Clusters with what each is told, where they disagree, and what can't be used.
fn dump(publisher: &Publisher, problems: &Problems) -> Value {
    let problems = problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
    publisher.with(|views| {
        let cluster = |name: &str| {
            let view = views.view(name)?;
            let addresses: Vec<&str> = view.addresses().names().collect();
            let policies: Vec<&str> = view.policies().names().collect();
            let problems: Vec<_> = problems.get(name).into_iter().flatten().map(ToString::to_string).collect();
            Some((name.to_owned(), json!({ "addresses": addresses, "policies": policies, "problems": problems })))
        };
        let clusters: serde_json::Map<_, _> = views.clusters().filter_map(cluster).collect();
        let skew = views.skew();
        let skew: Vec<_> = skew
            .iter()
            .map(|skew| {
                let values: serde_json::Map<_, _> =
                    skew.values.iter().map(|(cluster, value)| (cluster.to_string(), value.as_str().into())).collect();
                json!({
                    "service": &*skew.service,
                    "field": skew.field.to_string(),
                    "values": values,
                    "resolution": skew.resolution.to_string(),
                })
            })
            .collect();
        json!({ "clusters": clusters, "skew": skew })
    })
}

fn page(dump: &Value) -> String {
    let mut html = String::from(
        "<!doctype html><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>Control plane</title>\
         <style>:root{color-scheme:light dark}body{font:15px/1.5 system-ui;margin:2em auto;max-width:60em;padding:0 1em}\
         li{overflow-wrap:anywhere}</style><h1>Control plane</h1>",
    );
    let list = |html: &mut String, title: &str, items: Option<&Vec<Value>>| {
        let items = items.map(Vec::as_slice).unwrap_or_default();
        let _ = write!(html, "<details><summary>{title}: {}</summary><ul>", items.len());
        for item in items {
            let _ = write!(html, "<li>{}", escaped(item.as_str().unwrap_or_default()));
        }
        html.push_str("</ul></details>");
    };
    for (name, cluster) in dump["clusters"].as_object().into_iter().flatten() {
        let _ = write!(html, "<h2>{}</h2>", escaped(name));
        list(&mut html, "Workloads and services", cluster["addresses"].as_array());
        list(&mut html, "Policies", cluster["policies"].as_array());
        list(&mut html, "Problems", cluster["problems"].as_array());
    }
    html.push_str("<h2>Where clusters disagree</h2><ul>");
    for skew in dump["skew"].as_array().into_iter().flatten() {
        let text = |field: &str| escaped(skew[field].as_str().unwrap_or_default());
        let _ = write!(html, "<li><b>{}</b>, {}: ", text("service"), text("field"));
        for (cluster, value) in skew["values"].as_object().into_iter().flatten() {
            let _ = write!(
                html,
                "{} says <code>{}</code>; ",
                escaped(cluster),
                escaped(value.as_str().unwrap_or_default())
            );
        }
        html.push_str(&text("resolution"));
    }
    html.push_str("</ul>");
    html
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
