--- A relay on loopback between a client and a server, for what goes wrong with connections; and one that ends with
--- HTTP/2 over TLS in front of a server that knows neither.

local arena = require "spec.support.arena"
local core = require "bough.core"
local daemon = require "spec.support.daemon"
local registry = require "spec.support.registry"
local scratch = require "spec.support.scratch"

local relay = {}
relay.__index = relay

local quote = scratch.quote

--- @param to string "127.0.0.1:5000", or "unix:" and a path
function relay.start(to)
  local self = setmetatable({}, relay)
  self.daemon = daemon.start(("%s spec/support/relay_server.lua %s"):format(arena.lua(), quote(to)), "listening on")
  self.port = self.daemon:port()
  self.host = ("127.0.0.1:%d"):format(self.port)
  self.control = "http://" .. self.daemon.line:match "listening on (%S+)"
  self.client = core.http()
  return self
end

--- HTTP/2 (or 1.1) over TLS, with the certificate `ca_file`, in front of a server at host:port that speaks plain
--- HTTP/1.1.
--- @param to string
--- @param opts { streams: integer? }? at a time in one connection; default 100
function relay.tls(to, opts)
  local dir = scratch.dir "tls"
  registry.certificate(dir)
  local command = ("exec nghttpx --conf=/dev/null --single-process --no-ocsp -n1 -L NOTICE --errorlog-file=/dev/stderr "
    .. "--accesslog-file=/dev/null -f unix:%s/socket -b %s --frontend-http2-max-concurrent-streams=%d "
    .. "--backend-read-timeout=1h --frontend-http2-read-timeout=1h %s/key.pem %s/cert.pem")
    :format(quote(dir), to:gsub(":", ","), opts and opts.streams or 100, quote(dir), quote(dir))
  local front = daemon.start(command, "istening on")
  local self = relay.start("unix:" .. dir .. "/socket")
  self.front = front
  self.ca_file = dir .. "/cert.pem"
  self.url = ("https://localhost:%d"):format(self.port)
  return self
end

local function order(self, what)
  return self.client:request { url = self.control .. what, stall_timeout = math.huge }.body
end

--- Resets all connections there are.
function relay:cut() order(self, "/cut") end

--- Whether connections from now on are taken and hear nothing.
function relay:hold(on) order(self, "/hold?" .. (on and 1 or 0)) end

--- Takes so many bytes a second from each client; nil: as they come.
function relay:rate(bytes) order(self, "/rate?" .. (bytes or "")) end

--- How many connections there have been, and how many there are.
--- @return integer total, integer open
function relay:count()
  local total, open = order(self, "/count"):match "^(%d+) (%d+)$"
  return math.tointeger(tonumber(total)), math.tointeger(tonumber(open))
end

function relay:stop()
  self.client:close()
  self.daemon:stop()
  if self.front then self.front:stop() end
end

return relay
