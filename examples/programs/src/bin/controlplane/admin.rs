//! What the control plane knows, as JSON and for people.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use hbone::xds::Publisher;
use hbone::xds::delta::Resources as _;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::Problems;

/// So many clients are served at a time.
const CLIENTS: usize = 16;
/// For so long each, until it has asked.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn run(listener: TcpListener, publisher: Publisher, problems: Problems) {
    let clients = std::sync::Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (publisher, problems) = (publisher.clone(), problems.clone());
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            std::future::ready(Ok::<_, Infallible>(answer(request.uri().path(), &publisher, &problems)))
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
        let connection = builder.serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "admin connection");
            }
            drop(permit);
        });
    }
}

fn answer(path: &str, publisher: &Publisher, problems: &Problems) -> Response<Full<Bytes>> {
    let (status, kind, text) = match path {
        "/healthz/ready" => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
        "/config_dump" => (StatusCode::OK, "application/json", format!("{:#}\n", dump(publisher, problems))),
        "/" => (StatusCode::OK, "text/html; charset=utf-8", page(&dump(publisher, problems))),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /, /config_dump and /healthz/ready\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response
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
