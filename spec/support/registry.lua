--- Debian's docker-registry on loopback, filled by skopeo.

local cjson = require "cjson"
local core = require "bough.core"
local daemon = require "spec.support.daemon"
local scratch = require "spec.support.scratch"

local registry = {}
registry.__index = registry

local quote, sh = scratch.quote, scratch.sh

local CONFIG = [[
version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, maintenance: {uploadpurging: {enabled: false}}}
http:
  addr: 127.0.0.1:0
  secret: none
]]

--- Starts a registry.
--- @param opts { users: table<string, string>?, tls: boolean? }? users: name -> password, by htpasswd;
---   tls: with a certificate of its own, `ca_file`
function registry.start(opts)
  opts = opts or {}
  local dir = scratch.dir "registry"
  local config = CONFIG:format(dir .. "/data")
  local self = setmetatable({ dir = dir }, registry)
  if opts.tls then
    self.ca_file = dir .. "/cert.pem"
    registry.certificate(dir)
    config = config .. ("  tls: {certificate: %q, key: %q}\n"):format(self.ca_file, dir .. "/key.pem")
  end
  if opts.users then
    local lines = {}
    for name, password in pairs(opts.users) do
      lines[#lines + 1] = name .. ":" .. registry.bcrypt(password)
    end
    scratch.file(table.concat(lines, "\n") .. "\n", dir .. "/htpasswd")
    config = config .. ("auth: {htpasswd: {realm: registry, path: %q}}\n"):format(dir .. "/htpasswd")
  end
  scratch.file(config, dir .. "/config.yml")
  self.daemon = daemon.start("exec docker-registry serve " .. quote(dir .. "/config.yml"), "listening on")
  self.port = assert(math.tointeger(tonumber(self.daemon.line:match "listening on [^ ]-:(%d+)")))
  self.host = ("127.0.0.1:%d"):format(self.port)
  return self
end

--- A certificate for 127.0.0.1 and localhost: cert.pem and key.pem in a directory.
function registry.certificate(dir)
  sh(("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext "
    .. "subjectAltName=IP:127.0.0.1,DNS:localhost -keyout %s/key.pem -out %s/cert.pem")
    :format(quote(dir), quote(dir)))
end

--- The line of an htpasswd file that a password becomes; the C library knows how.
function registry.bcrypt(password)
  local perl = "print crypt($ARGV[0], q($2b$04$abcdefghijklmnopqrstuu))"
  local hash = sh(("perl -e %s -- %s"):format(quote(perl), quote(password)))
  assert(hash:find "^%$2b%$", "this machine's crypt(3) has no bcrypt")
  return hash
end

local function put_blob(layout, content)
  local hex = core.sha256(content)
  scratch.file(content, ("%s/blobs/sha256/%s"):format(layout, hex))
  return "sha256:" .. hex, #content
end

--- Makes an OCI layout with one image.
--- @param opts { layers: integer[]?, architecture: string? }? layers: sizes in bytes of one file in each,
---   which cannot be compressed
--- @return string layout, table manifest, string digest of the manifest
function registry.layout(opts)
  opts = opts or {}
  local dir = scratch.dir "layout"
  sh(("mkdir -p %s/blobs/sha256 %s/tree"):format(quote(dir), quote(dir)))
  local layers, diff_ids = {}, {}
  for i, size in ipairs(opts.layers or { 1000 }) do
    sh(("cd %s/tree && head -c %d /dev/urandom >file%d && tar --owner=0 --group=0 -cf ../layer.tar file%d "
      .. "&& rm file%d && gzip -1 -n -k -f ../layer.tar"):format(quote(dir), size, i, i, i))
    local function content(name)
      local file <close> = assert(io.open(dir .. "/" .. name, "rb"))
      return file:read "a"
    end
    diff_ids[i] = "sha256:" .. core.sha256(content "layer.tar")
    local digest, bytes = put_blob(dir, content "layer.tar.gz")
    layers[i] = { mediaType = "application/vnd.oci.image.layer.v1.tar+gzip", digest = digest, size = bytes }
  end
  local config, config_size = put_blob(dir, cjson.encode {
    architecture = opts.architecture or registry.architecture(), os = "linux",
    config = { Env = { "PATH=/bin" }, Cmd = { "/bin/sh" } },
    rootfs = { type = "layers", diff_ids = diff_ids },
  })
  local made = {
    schemaVersion = 2, mediaType = "application/vnd.oci.image.manifest.v1+json",
    config = { mediaType = "application/vnd.oci.image.config.v1+json", digest = config, size = config_size },
    layers = layers,
  }
  local digest, size = put_blob(dir, cjson.encode(made))
  scratch.file('{"imageLayoutVersion":"1.0.0"}', dir .. "/oci-layout")
  scratch.file(cjson.encode { schemaVersion = 2, manifests = { {
    mediaType = made.mediaType, digest = digest, size = size,
    annotations = { ["org.opencontainers.image.ref.name"] = "latest" },
  } } }, dir .. "/index.json")
  return dir, made, digest
end

--- What images call this machine.
function registry.architecture() return require "bough.platform".here().architecture end

--- Copies a layout in by skopeo.
--- @param name string "repository:tag"
--- @param login string? "user:password"
function registry:push(layout, name, login)
  sh(("TMPDIR=%s skopeo --insecure-policy copy -q --dest-tls-verify=false %s oci:%s:latest docker://%s/%s")
    :format(quote(scratch.dir "skopeo"), login and "--dest-creds " .. quote(login) or "", quote(layout),
      self.host, name))
end

--- Puts a manifest, or an index of them, as it is.
--- @return string digest
function registry:put_manifest(name, tag, value)
  local client <close> = core.http()
  local text = cjson.encode(value)
  local answer = client:request {
    url = ("http://%s/v2/%s/manifests/%s"):format(self.host, name, tag), method = "PUT", body = text,
    headers = { ["Content-Type"] = value.mediaType },
  }
  assert(answer.status == 201, answer.body)
  return "sha256:" .. core.sha256(text)
end

function registry:stop() self.daemon:stop() end

return registry
