--- `bough serve`: the account, images, files and what is inside of images. (Runs are in serve_runs_spec.)

local cjson = require "cjson"
local core = require "bough.core"
local http = require "bough.serve.http"
local registry = require "spec.support.registry"
local scratch = require "spec.support.scratch"
local serving = require "spec.support.serving"

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"
local NOBODY = "00000000-0000-4000-8000-000000000000"
local NO_IMAGE = "/inspect/" .. NOBODY

local function gunzip(bytes)
  local path = scratch.file(bytes)
  return scratch.sh("gzip -dc " .. scratch.quote(path))
end

describe("a server", function()
  local served, tree, busybox

  setup(function()
    served = serving.start { base_path = "/sandboxes/" }
    local box = served.engine
    tree = box.images:use("busybox"):run {
      "/bin/sh", "-c", [[
        mkdir -p /srv/app/deep /etc
        echo 'root:x:0:0:root:/:/bin/sh
web:x:1000:1001::/srv:/bin/sh' >/etc/passwd
        echo 'root:x:0:
www:x:1001:' >/etc/group
        printf 'print "hello"\n-- TODO: tests\nTODO last' >/srv/app/main.lua
        printf 'one\ntwo TODO\nthree\nfour todo\n' >/srv/app/notes.txt
        printf 'bin\000ary TODO\n' >/srv/app/binary
        echo TODO >/srv/app/deep/.hidden
        ln -s main.lua /srv/app/link; ln /srv/app/notes.txt /srv/app/notes2.txt; mkfifo /srv/app/pipe
        chown 1000:1001 /srv/app/main.lua; chown 4242:4343 /srv/app/notes.txt
        chmod 4755 /srv/app/main.lua; ln -s /nowhere /srv/app/broken; ln -s /srv/app /short
        : >'/srv/app/a name
of two lines']],
      tag = "team/tree:1", check = true,
    }
    busybox = served:image "busybox"
  end)

  teardown(function() served:stop() end)

  describe("on the wire", function()
    it("S1: has its endpoints below /v1, and behind a base path", function()
      assert.equal(served.server.url, ("http://127.0.0.1:%d/sandboxes"):format(served.server.port))
      local root = ("http://127.0.0.1:%d"):format(served.server.port)
      for _, base in ipairs { root .. "/v1", root .. "/sandboxes/v1" } do
        assert.equal(200, served:get(base .. "/whoami").status)
        assert.equal(200, served:get(base .. "/images?limit=1").status)
      end
      for _, path in ipairs { "/whoami", "/v2/whoami", "/other/v1/whoami", "/sandboxes/whoami", "/", "/v1", "/v1/" } do
        assert.equal(404, served:get(root .. path).status, path)
      end
    end)

    it("S1: every endpoint exists", function()
      local here = "/operations/" .. NOBODY
      for _, one in ipairs {
        { "GET", "/whoami", 200 }, { "GET", "/images", 200 }, { "PATCH", ("/images/%s/tag"):format(NOBODY), 400 },
        { "DELETE", ("/images/%s/tag"):format(NOBODY), 404 }, { "POST", "/images/import", 400 },
        { "GET", "/files", 200 }, { "POST", "/files", 201 }, { "GET", "/files/" .. ("0"):rep(64), 404 },
        { "HEAD", "/files/" .. ("0"):rep(64), 404 }, { "POST", "/instances", 400 }, { "GET", "/operations", 200 },
        { "GET", here, 404 }, { "DELETE", here, 404 }, { "GET", here .. "/events", 404 },
        { "POST", here .. "/subprocesses", 404 }, { "GET", here .. "/subprocesses/1", 404 },
        { "DELETE", here .. "/subprocesses/1", 404 }, { "POST", here .. "/subprocesses/1/stdin", 404 },
        { "GET", "/inspect/", 400 }, { "GET", NO_IMAGE .. "/", 404 }, { "GET", NO_IMAGE .. "/list?path=/", 404 },
        { "GET", NO_IMAGE .. "/download?path=/x", 404 }, { "HEAD", NO_IMAGE .. "/download?path=/x", 404 },
        { "GET", NO_IMAGE .. "/archive?path=/x", 404 }, { "HEAD", NO_IMAGE .. "/archive?path=/x", 404 },
        { "GET", NO_IMAGE .. "/grep?pattern=x", 404 },
      } do
        local method, path, status = table.unpack(one)
        local body = method == "POST" and path:find "subprocesses" and '{"command":"x","value":""}'
          or (method == "POST" or method == "PATCH") and "{}" or nil
        local answer = served:request(method, path, { body = body })
        assert.equal(status, answer.status, method .. " " .. path .. ": " .. answer.body)
        if method ~= "HEAD" then
          assert.is_true(answer.status ~= 404 or not answer.body:find "route", "no route: " .. path)
        end
      end
    end)

    it("S2: wants a bearer token that it knows", function()
      for _, headers in ipairs {
        {}, { Authorization = "Bearer wrong" }, { Authorization = "Bearer" }, { Authorization = served.token },
        { Authorization = "Basic " .. served.token }, { Authorization = "Bearer " .. served.token .. "x" },
        { Authorization = "Bearer " .. served.token:sub(1, -2) }, { ["X-Api-Key"] = served.token },
      } do
        for _, path in ipairs { "/whoami", "/images", "/nowhere" } do
          local answer = served:get(path, { token = false, headers = headers })
          assert.equal(401, answer.status)
          assert.equal(401, answer.json.status)
          assert.is_string(answer.json.error)
          assert.matches("^Bearer", answer.headers["www-authenticate"])
          assert.is_nil(answer.body:find(served.token, 1, true))
        end
      end
      local lower = { Authorization = "bearer " .. served.token }
      assert.equal(200, served:get("/whoami", { token = false, headers = lower }).status)
    end)

    it("S5: compresses what is accepted, and nothing else", function()
      local plain = served:get "/images"
      assert.is_nil(plain.headers["content-encoding"])
      for _, path in ipairs {
        "/images", "/inspect/" .. busybox .. "/list?path=/bin", "/inspect/" .. busybox .. "/download?path=/bin/busybox",
        "/inspect/" .. busybox .. "/archive?path=/bin",
      } do
        local bare = served:get(path)
        local packed = served:get(path, { headers = { ["Accept-Encoding"] = "gzip" } })
        assert.equal("gzip", packed.headers["content-encoding"], path)
        assert.is_nil(bare.headers["content-encoding"])
        assert.is_true(gunzip(packed.body) == bare.body, path)
      end
      local long = "/images?tag=" .. ("x"):rep(300)
      local refused = served:get(long, { headers = { ["Accept-Encoding"] = "gzip" }, compressed = false })
      assert.equal(400, refused.status)
    end)

    it("S7: takes bodies with a length and in chunks", function()
      local path = scratch.file(("0123456789"):rep(100000))
      local uuids = {}
      for i, header in ipairs { "X-Nothing: 1", "Transfer-Encoding: chunked" } do
        local result = core.host_exec({
          -- curl does not end where a sanitizer's runtime is preloaded
          argv = {
            "env", "-u", "LD_PRELOAD", "curl", "-sS", "-H", "Authorization: Bearer " .. served.token, "-H", header,
            "-H", "Content-Type: application/octet-stream", "--data-binary", "@" .. path, served.url .. "/v1/files",
          },
          stdout = true, stderr = true,
        }):wait()
        uuids[i] = cjson.decode(result.stdout).uuid
      end
      assert.matches(UUID, uuids[1])
      assert.equal(uuids[1], uuids[2])
    end)

    it("S8: lets headers, fields and content types pass that mean nothing to it", function()
      local answer = served:get("/whoami?unknown=1", {
        headers = { ["Content-Type"] = "application/json", ["X-Whatever"] = "1", Cookie = "a=b" },
      })
      assert.equal(200, answer.status)
      local tag = served:patch(("/images/%s/tag"):format(tree.uuid), {
        json = { tag = "team/tree:1", colour = "red", nested = { 1, 2 } },
        headers = { ["Content-Type"] = "text/plain" },
      })
      assert.equal(200, tag.status)
    end)

    it("S9: an unknown route is 404, a wrong method 405", function()
      for _, path in ipairs {
        "/nothing", "/images/", "/images/x", "/images/x/y", "/files/x/y", "/inspect/x/y", "/inspect/x/list/",
        "/operations/x/y", "/whoami/", "/methods", "/*", "/inspect/x/y/z",
      } do
        local answer = served:get(path)
        assert.equal(404, answer.status, path)
        assert.equal(404, answer.json.status)
        assert.is_string(answer.json.error)
      end
      for path, allowed in pairs {
        ["/whoami"] = "GET", ["/files"] = "GET, POST", ["/images/import"] = "POST", ["/inspect/"] = "GET",
        [("/images/%s/tag"):format(busybox)] = "DELETE, PATCH", ["/inspect"] = "GET",
      } do
        local answer = served:request("PUT", path, { body = "" })
        assert.equal(405, answer.status, path)
        assert.equal(405, answer.json.status)
        assert.equal(allowed, answer.headers.allow)
      end
      assert.equal(405, served:head("/files").status)
    end)

    it("S10: goes on with a connection, and answers HEAD without a body", function()
      for _ = 1, 3 do assert.equal(200, served:get("/whoami").status) end
      local head = served:head(("/inspect/%s/download?path=/bin/busybox"):format(busybox))
      assert.equal(200, head.status)
      assert.equal("", head.body)
      assert.equal(404, served:head("/files/" .. ("1"):rep(64)).status)
    end)

    it("sends a slash behind where one is missing", function()
      for path, location in pairs {
        ["/inspect?tag=busybox"] = "inspect/?tag=busybox", ["/inspect/" .. busybox] = busybox .. "/",
      } do
        local answer = served:get(path)
        assert.equal(308, answer.status)
        assert.equal(location, answer.headers.location)
      end
      assert.equal(busybox, served:get("/inspect?tag=busybox", { follow = 5 }).json.uuid)
      assert.equal(busybox, served:get("/inspect/" .. busybox, { follow = 5 }).json.uuid)
    end)
  end)

  describe("account", function()
    it("tells permissions, limits and what runs", function()
      local answer = served:get("/whoami").json
      assert.matches(UUID, answer.token_uuid)
      assert.equal(cjson.null, answer.token_expiration)
      assert.same({
        list = true, spawn = true, spawn_disposable = true, import = true, cancel = true, set_image_tag = true,
      }, answer.permissions)
      assert.equal(3600, answer.limits.instance_max_timeout)
      assert.equal(50, answer.limits.instance_max_concurrency)
      assert.equal(12884901888, answer.limits.instance_max_layer_bytes)
      assert.same({ running_instances = 0, running_imports = 0 }, answer.operations_stat)
      assert.equal(answer.token_uuid, served:get("/whoami").json.token_uuid)
    end)
  end)

  describe("listings", function()
    local images

    setup(function()
      images = {}
      local made = served.engine.images:get(busybox)
      for i = 1, 5 do
        made = made:run { "/bin/touch", "/file" .. i, check = true, tag = i <= 3 and "listed/" .. i or nil }
        images[i] = made.uuid
      end
    end)

    it("S11: limit is 100 unless given, from 1 to 1000", function()
      for _, path in ipairs { "/images", "/files", "/operations" } do
        for _, bad in ipairs { "0", "1001", "-1", "x", "1.5", "", "99999999999999999999" } do
          local answer = served:get(path .. "?limit=" .. bad)
          assert.equal(400, answer.status, path .. " " .. bad)
          if bad == "0" or bad == "1001" then
            assert.equal("limit must be between 1 and 1000", answer.json.error)
          end
        end
        assert.equal(200, served:get(path .. "?limit=1000").status)
      end
      assert.equal(2, #served:get("/images?limit=2").json.images)
    end)

    it("S12: an offset past the end gives an empty list", function()
      assert.same({}, served:get("/images?offset=100000").json.images)
      assert.matches('"images":%[%]', served:get("/images?offset=100000").body)
      assert.matches('"files":%[%]', served:get("/files?offset=100000").body)
      assert.equal("[]", served:get("/operations?offset=100000").body)
      assert.equal(400, served:get("/images?offset=-1").status)
    end)

    it("is newest first, the same in pages", function()
      local all, seen = served:get("/images").json.images, {}
      for i = 1, #all - 1 do assert.is_true(all[i].created_at >= all[i + 1].created_at) end
      for offset = 0, #all - 1, 2 do
        for _, one in ipairs(served:get(("/images?limit=2&offset=%d"):format(offset)).json.images) do
          seen[#seen + 1] = one.uuid
        end
      end
      for i, one in ipairs(all) do assert.equal(one.uuid, seen[i]) end
      assert.equal(#all, #seen)
    end)

    it("S13: since and until", function()
      local newest = served:get("/images?limit=1").json.images[1]
      local at = newest.created_at:gsub("%+", "%%2B")
      local function count(query) return #served:get("/images?" .. query).json.images end
      local all = count "limit=1000"
      assert.is_true(count("since=" .. at) >= 1)
      assert.equal(all, count("until=" .. at))
      for _, interval in ipairs { "15m", "2h", "3d", "1w", "3600" } do
        assert.equal(all, count("since=" .. interval), interval)
        assert.equal(0, count("until=" .. interval), interval)
      end
      assert.equal(0, count "since=2h&until=3d")
      assert.equal(0, count "since=2999-01-01T00:00:00Z")
      assert.equal(all, count "since=2020-01-01T00:00:00%2B02:00")
      for _, bad in ipairs { "yesterday", "1y", "", "-5", "2026-13-01T00:00:00Z" } do
        assert.equal(400, served:get("/images?since=" .. bad).status, bad)
      end
    end)

    it("S14: tagged filters where it is on; a tag is a prefix, and the exact one comes first", function()
      local all = #served:get("/images?limit=1000").json.images
      local tagged = served:get("/images?limit=1000&tagged=1").json.images
      assert.is_true(#tagged < all)
      for _, one in ipairs(tagged) do assert.is_string(one.tag) end
      assert.equal(#tagged, #served:get("/images?limit=1000&tagged=").json.images)
      assert.equal(all, #served:get("/images?limit=1000&tagged=0").json.images)
      assert.equal(400, served:get("/images?tagged=2").status)
      local listed = served:get("/images?tag=listed").json.images
      assert.same({ "listed/3", "listed/2", "listed/1" }, { listed[1].tag, listed[2].tag, listed[3].tag })
      assert.equal(3, #served:get("/images?tag=listed/").json.images)
      served:patch(("/images/%s/tag"):format(images[1]), { json = { tag = "listed" } })
      listed = served:get("/images?tag=listed").json.images
      assert.same({ images[1], images[3], images[2] }, { listed[1].uuid, listed[2].uuid, listed[3].uuid })
      assert.equal(images[3], served:get("/images?tag=listed&limit=1&offset=1").json.images[1].uuid)
      served:patch(("/images/%s/tag"):format(images[1]), { json = { tag = "listed/1" } })
      for _, bad in ipairs { "Big", "a%20b", "a%2A", "%2Fa" } do
        assert.equal(400, served:get("/images?tag=" .. bad).status, bad)
      end
    end)

    it("filters by the beginning of a uuid", function()
      local uuid = images[2]
      for _, prefix in ipairs { uuid, uuid:upper(), uuid:sub(1, 13), uuid:sub(1, 9) } do
        local found = served:get("/images?uuid=" .. prefix).json.images
        assert.equal(1, #found, prefix)
        assert.equal(uuid, found[1].uuid)
      end
      assert.equal(400, served:get("/images?uuid=xyz").status)
    end)

    it("S15: operations are a bare array, and an unknown status is refused", function()
      assert.matches("^%[", served:get("/operations").body)
      assert.equal(400, served:get("/operations?status=DONE").status)
      assert.equal(400, served:get("/operations?kind=other").status)
      assert.equal(200, served:get("/operations?status=SUCCESS&kind=instance").status)
    end)

    it("S16: decodes queries as all clients write them", function()
      for _, tag in ipairs { "team/tree:1", "team%2Ftree%3A1", "team/tree%3a1" } do
        local answer = served:get("/inspect/?tag=" .. tag)
        assert.equal(302, answer.status, tag)
        assert.equal(tree.uuid .. "/", answer.headers.location)
      end
      local function listing(path) return served:get(("/inspect/%s/list?path=%s"):format(tree.uuid, path)) end
      served.engine.images:get(tree.uuid):run { "/bin/mkdir", "/a b", check = true, tag = "blank" }
      local blank = served:image "blank"
      for _, path in ipairs { "/a+b", "/a%20b", "%2Fa%20b", "a+b" } do
        local answer = served:get(("/inspect/%s/list?path=%s"):format(blank, path))
        assert.equal(200, answer.status, path)
        assert.equal("/a b", answer.json.path)
      end
      assert.equal(400, listing("%2").status)
      assert.equal(400, listing("/a%00b").status)
      assert.equal(400, served:get(("/inspect/%s/list?path=/&path=/etc"):format(blank)).status)
    end)
  end)

  describe("tags", function()
    local function set(uuid, tag) return served:patch(("/images/%s/tag"):format(uuid), { json = { tag = tag } }) end
    local function find(tag) return served:get("/inspect/?tag=" .. tag) end

    it("S17: are set, replaced and moved", function()
      local answer = set(tree.uuid, "first")
      assert.equal(200, answer.status)
      assert.equal("first", answer.json.tag)
      assert.equal(tree.uuid, answer.json.uuid)
      assert.is_string(answer.json.created_at)
      assert.equal("second", set(tree.uuid, "second").json.tag)
      assert.equal(404, find("first").status)
      local other = served.engine.images:get(busybox):run { "/bin/touch", "/other", check = true }
      assert.equal("second", set(other.uuid, "second").json.tag)
      assert.equal(other.uuid .. "/", find("second").headers.location)
      assert.equal(cjson.null, served:get(("/inspect/%s/"):format(tree.uuid)).json.tag)
      assert.equal(200, set(tree.uuid:upper(), "team/tree:1").status)
    end)

    it("S17: one that the store does not take leaves the one that is there", function()
      assert.equal(200, set(tree.uuid, "stays").status)
      local answer = set(tree.uuid, ("x"):rep(256))
      assert.equal(400, answer.status)
      assert.matches("tag must be 1 to 255 bytes", answer.json.error)
      assert.equal(tree.uuid .. "/", find("stays").headers.location)
      -- and where it finds out late
      local image = served.engine.images:get "stays"
      local broken = setmetatable({ tag_as = function() error "no room" end }, { __index = image })
      local app = {
        tagging = { acquire = function() return nil end },
        box = { images = { list = function() return { broken } end } },
      }
      local request = { body = function() return '{"tag":"new"}' end }
      assert.is_false((pcall(require("bough.serve.images").tag, app, request, tree.uuid)))
      assert.equal(tree.uuid .. "/", find("stays").headers.location)
    end)

    it("S17: a bad one is 400, an unknown image 404", function()
      for _, bad in ipairs { "", "Upper", "a b", "a//b", "/a", "a/", "a..b", ("x"):rep(256), busybox, "ä", "a\n" } do
        assert.equal(400, set(tree.uuid, bad).status, bad)
      end
      for _, body in ipairs { "{}", "[]", "null", "x", '{"tag":1}', '{"tag":null}', "", '{"tag":["a"]}' } do
        local answer = served:patch(("/images/%s/tag"):format(tree.uuid), { body = body })
        assert.equal(400, answer.status, body)
        assert.is_string(answer.json.error)
      end
      assert.equal(404, set(NOBODY, "good").status)
      assert.equal(404, set("not-a-uuid", "good").status)
      for _, good in ipairs { "a", "a-b_c", "team/base:2026-09", "docker.io/library/x:1.2", ("x"):rep(255) } do
        assert.equal(200, set(tree.uuid, good).status, good)
      end
      assert.equal(200, set(tree.uuid, "team/tree:1").status)
    end)

    it("S18: are removed", function()
      local image = served.engine.images:get(busybox):run { "/bin/touch", "/untagged", check = true }
      local path = ("/images/%s/tag"):format(image.uuid)
      set(image.uuid, "gone")
      local answer = served:delete(path)
      assert.equal(204, answer.status)
      assert.equal("", answer.body)
      assert.equal(404, find("gone").status)
      assert.equal(204, served:delete(path).status, "once more, as after a lost answer")
      set(image.uuid, "again:1")
      assert.equal(409, served:delete(path .. "?tag=other").status)
      assert.equal(204, served:delete(path .. "?tag=again:1").status)
      assert.equal(404, find("again:1").status)
      assert.equal(404, served:delete(("/images/%s/tag"):format(NOBODY)).status)
    end)

    it("S19: are looked up by a redirect", function()
      local answer = find "team/tree:1"
      assert.equal(302, answer.status)
      assert.equal("", answer.body)
      assert.equal(tree.uuid .. "/", answer.headers.location)
      local followed = served:get("/inspect/?tag=team/tree:1", { follow = 3 })
      assert.equal(200, followed.status)
      assert.equal(tree.uuid, followed.json.uuid)
      assert.equal("team/tree:1", followed.json.tag)
      assert.equal(400, served:get("/inspect/").status)
      assert.equal(400, served:get("/inspect/?tag=").status)
      for _, unknown in ipairs { "nobody", "team/*", "team/tree:?", busybox, "Upper", "a%20b" } do
        assert.equal(404, find(unknown).status, unknown)
      end
    end)
  end)

  describe("files", function()
    it("S20: have the right digest and size, and one uuid for one content", function()
      for _, content in ipairs { "hello", "", ("\0\255"):rep(1000), ("x"):rep(3 << 20) } do
        local answer = served:post("/files", { body = content })
        assert.equal(201, answer.status)
        assert.matches(UUID, answer.json.uuid)
        assert.equal(core.sha256(content), answer.json.sha256)
        assert.equal(#content, answer.json.size)
        assert.same(answer.json, served:post("/files", { body = content }).json)
      end
    end)

    it("S21: are found by their digest", function()
      local made = served:post("/files", { body = "findable" }).json
      local found = served:get("/files/" .. made.sha256)
      assert.equal(200, found.status)
      assert.equal(made.uuid, found.json.uuid)
      assert.equal(8, found.json.size)
      assert.matches("^%d%d%d%d%-%d%d%-%d%dT", found.json.created_at)
      assert.matches("^%d%d%d%d%-%d%d%-%d%dT", found.json.updated_at)
      assert.equal(200, served:get("/files/" .. made.sha256:upper()).status)
      assert.equal(200, served:head("/files/" .. made.sha256).status)
      for _, unknown in ipairs { ("0"):rep(64), "x", made.uuid, made.sha256 .. "0" } do
        assert.equal(404, served:get("/files/" .. unknown).status)
        assert.equal(404, served:head("/files/" .. unknown).status)
      end
    end)

    it("are listed, newest first", function()
      local one = served:post("/files", { body = "listed one" }).json
      local two = served:post("/files", { body = "listed two" }).json
      local files = served:get("/files?limit=2").json.files
      assert.same({ two.uuid, one.uuid }, { files[1].uuid, files[2].uuid })
      assert.equal(one.uuid, served:get("/files?limit=1&offset=1").json.files[1].uuid)
      assert.same({}, served:get("/files?until=1h").json.files)
      for _, field in ipairs { "uuid", "sha256", "size", "created_at", "updated_at" } do
        assert.not_nil(files[1][field], field)
      end
    end)

    it("above the limit are refused before they are read, and leave nothing", function()
      local small = serving.start {
        tokens = { { token = "small", limits = { upload_max_bytes = 1000 } } }, images = {},
      }
      finally(function() small:stop() end)
      assert.equal(201, small:post("/files", { body = ("x"):rep(1000) }).status)
      local answer = small:post("/files", { body = ("x"):rep(1001) })
      assert.equal(413, answer.status)
      assert.matches("larger than 1000 bytes", answer.json.error)
      assert.equal(1000, small:get("/whoami").json.limits.upload_max_bytes)
      for _, entry in ipairs(core.fs.list(small.engine:info().scratch)) do
        assert.is_nil(entry.name:find "^upload")
      end
    end)
  end)

  describe("imports", function()
    local local_registry

    setup(function()
      local_registry = registry.start { users = { robot = "s3cret-word" } }
      local_registry:push(registry.layout { layers = { 5000 } }, "base/lua:5.4", "robot:s3cret-word")
    end)
    teardown(function() local_registry:stop() end)

    local function import(at, body) return at:post("/images/import", { json = body }) end

    it("S22: give an operation, an image and its tag, and mask the password everywhere", function()
      local events = {}
      local here = serving.start {
        insecure_registries = { local_registry.host }, log = function(event) events[#events + 1] = event end,
      }
      finally(function() here:stop() end)
      local url = ("docker://%s/base/lua:5.4"):format(local_registry.host)
      local answer = import(here, {
        registry = { url = url, credentials = { username = "robot", password = "s3cret-word" } }, tag = "lua:5.4",
        timeout = 60,
      })
      assert.equal(201, answer.status, answer.body)
      assert.matches(UUID, answer.json.uuid)
      assert.equal("/v1/operations/" .. answer.json.uuid, answer.headers.location)
      local operation = here:finished(answer.json.uuid)
      assert.equal("SUCCESS", operation.status, cjson.encode(operation))
      assert.equal("image_import", operation.kind)
      assert.equal(operation.result.image, operation.result_image_uuid)
      assert.equal("lua:5.4", operation.result.tag)
      assert.equal(cjson.null, operation.error)
      assert.same({
        registry = { url = url, credentials = { username = "robot", password = "<MASKED>" } }, tag = "lua:5.4",
        timeout = 60,
      }, operation.metadata)
      local image = here:get("/inspect/?tag=lua:5.4", { follow = 1 }).json
      assert.equal(operation.result_image_uuid, image.uuid)
      assert.equal(operation.uuid, image.operation_uuid)
      -- without a tag there is none
      answer = import(here, {
        registry = { url = url, credentials = { username = "robot", password = "s3cret-word" } },
      })
      operation = here:finished(answer.json.uuid)
      assert.equal("SUCCESS", operation.status)
      assert.equal(cjson.null, operation.result.tag)
      -- wrong credentials, and none
      for _, credentials in ipairs { { username = "robot", password = "wr0ng" }, { username = "", password = "" } } do
        answer = import(here, { registry = { url = url, credentials = credentials }, tag = "lua:5.4" })
        assert.equal(201, answer.status)
        operation = here:finished(answer.json.uuid)
        assert.equal("FAILED", operation.status)
        assert.is_string(operation.error)
        assert.equal("auth", operation.error_kind)
        assert.is_nil(cjson.encode(operation):find("wr0ng", 1, true))
        assert.equal(cjson.null, operation.result_image_uuid)
      end
      local listing = here:get("/operations").body
      assert.is_nil(listing:find("s3cret", 1, true))
      assert.is_nil(cjson.encode(events):find("s3cret", 1, true))
      here.server:stop(0)
      local stored = scratch.sh("cat " .. scratch.quote(here.home) .. "/serve.db*")
      assert.is_nil(stored:find("s3cret", 1, true))
      assert.is_nil(stored:find("wr0ng", 1, true))
    end)

    it("are refused for what is no name in a registry", function()
      for _, url in ipairs {
        "", "busybox", "/etc", "docker://", "docker:///etc", "https://docker.io/x", "docker://host/UPPER", "oci:/tmp",
        "docker://../../etc", "docker://docker.io/a b",
      } do
        local answer = import(served, { registry = { url = url } })
        assert.equal(400, answer.status, url)
        assert.matches("registry.url", answer.json.error)
      end
      for _, body in ipairs {
        {}, { registry = "docker://docker.io/x" }, { registry = {} }, { registry = { url = 1 } },
        { registry = { url = "docker://docker.io/x", credentials = { username = "only" } } },
        { registry = { url = "docker://docker.io/x" }, tag = "BAD" },
        { registry = { url = "docker://docker.io/x" }, timeout = 0 },
        { registry = { url = "docker://docker.io/x" }, timeout = "soon" },
      } do
        local answer = import(served, body)
        assert.equal(400, answer.status, cjson.encode(body))
      end
      assert.same({}, served:get("/operations?kind=image_import").json)
    end)

    it("come from this machine only where that is said, and from nowhere else where some are named", function()
      local answer = import(served, { registry = { url = ("docker://%s/base/lua:5.4"):format(local_registry.host) } })
      assert.equal(403, answer.status)
      local few = serving.start { images = {}, registries = { "ghcr.io" } }
      finally(function() few:stop() end)
      assert.equal(403, import(few, { registry = { url = "docker://docker.io/library/debian:12" } }).status)
    end)

    it("can be cancelled, end at their time, and are bounded in number", function()
      local mute = http.listen {} -- takes connections, and says nothing
      local host = ("127.0.0.1:%d"):format(mute.port)
      local here = serving.start {
        images = {}, insecure_registries = { host }, limits = { images_import_max_concurrency = 2 },
      }
      finally(function()
        here:stop()
        mute:close()
      end)
      local body = { registry = { url = ("docker://%s/never/comes:1"):format(host) } }
      local one, two = import(here, body).json.uuid, import(here, body).json.uuid
      assert.same({ running_instances = 0, running_imports = 2 }, here:get("/whoami").json.operations_stat)
      local refused = import(here, body)
      assert.equal(429, refused.status)
      assert.matches("Max concurrency limit of 2 imports", refused.json.error)
      assert.is_number(tonumber(refused.headers["retry-after"]))
      assert.equal(2, #here:get("/operations").json)
      for _, uuid in ipairs { one, two } do
        assert.equal(202, here:delete("/operations/" .. uuid).status)
        local operation = here:finished(uuid)
        assert.equal("CANCELLED", operation.status)
        assert.equal(cjson.null, operation.result_image_uuid)
        assert.equal(409, here:delete("/operations/" .. uuid).status)
      end
      body.timeout = 1
      local operation = here:finished(import(here, body).json.uuid)
      assert.equal("FAILED", operation.status)
      assert.matches("longer than 1 s", operation.error)
    end)
  end)

  describe("images inside", function()
    local function inspect(what, query, method)
      return served:request(method or "GET", ("/inspect/%s/%s?%s"):format(tree.uuid, what, query))
    end

    local function names(files)
      local all = {}
      for i, file in ipairs(files) do all[i] = file.path end
      return all
    end

    local function file(files, name)
      for _, one in ipairs(files) do
        if one.path == name then return one end
      end
    end

    it("S56: list a directory with all fifteen fields", function()
      local answer = inspect("list", "path=/srv/app")
      assert.equal(200, answer.status)
      assert.equal("/srv/app", answer.json.path)
      local files = answer.json.files
      assert.same({
        "a name\nof two lines", "binary", "broken", "deep", "link", "main.lua", "notes.txt", "notes2.txt", "pipe",
      }, names(files))
      local main = file(files, "main.lua")
      main.mtime = math.type(main.mtime) and type(main.mtime)
      assert.same({
        path = "main.lua", size = 38, owner = "web", group = "www", uid = 1000, gid = 1001, mode = 32768 + 2541,
        mtime = "number", nlink = 1, is_dir = false, is_regular = true, is_symlink = false, is_socket = false,
        is_fifo = false, symlink_to = "",
      }, main)
      local notes = file(files, "notes.txt")
      assert.same({ 4242, 4343, 2 }, { notes.owner, notes.group, notes.nlink })
      local link = file(files, "link")
      assert.same({ true, "main.lua", 40960 }, { link.is_symlink, link.symlink_to, link.mode & 61440 })
      assert.same({ true, 4096 }, { file(files, "pipe").is_fifo, file(files, "pipe").mode & 61440 })
      local deep = file(files, "deep")
      assert.same({ true, 16384 + 493, "root" }, { deep.is_dir, math.tointeger(deep.mode), deep.owner })
      assert.same(names(files), names(inspect("list", "path=srv/app").json.files), "without the slash in front")
      assert.same(names(files), names(inspect("list", "path=/short").json.files), "through a link")
    end)

    it("S56: as text where that is wanted", function()
      for _, flag in ipairs { "text=1", "text=" } do
        local answer = inspect("list", "path=/srv/app&" .. flag)
        assert.matches("^text/plain", answer.headers["content-type"])
        assert.matches("\n%-rwsr%-xr%-x +1 web +www +38 %d+%-%d%d%-%d%d %d%d:%d%d main.lua\n", answer.body)
        assert.matches("\nlrwxrwxrwx .* link %-> main.lua\n", answer.body)
        assert.matches("a name%?of two lines\n", answer.body)
        local _, lines = answer.body:gsub("\n", "")
        assert.equal(9, lines)
      end
      assert.is_table(inspect("list", "path=/srv/app&text=0").json)
    end)

    it("S56: 404 and 422", function()
      local missing = inspect("list", "path=/opt/missing")
      assert.equal(404, missing.status)
      assert.equal("path /opt/missing does not exist", missing.json.error)
      assert.equal(404, inspect("list", "path=/srv/app/broken").status)
      assert.equal(404, inspect("list", "path=/srv/app/main.lua/x").status)
      local regular = inspect("list", "path=/srv/app/main.lua")
      assert.equal(422, regular.status)
      assert.matches("/srv/app/main.lua is not a directory", regular.json.error)
      assert.equal(400, inspect("list", "").status)
      assert.equal(400, inspect("list", "path=").status)
      assert.equal(400, inspect("list", "path=/" .. ("x"):rep(5000)).status)
      assert.equal(200, inspect("list", "path=/../../..").status, "no way out")
    end)

    it("S56: a directory of very many names", function()
      local many = served.engine.images:get(busybox):run {
        "/bin/sh", "-c", "mkdir /many; cd /many; i=0; while [ $i -lt 5000 ]; do : >file-$i; i=$((i+1)); done",
        check = true,
      }
      local answer = served:get(("/inspect/%s/list?path=/many"):format(many.uuid))
      assert.equal(200, answer.status)
      assert.equal(5000, #answer.json.files)
      assert.equal("/many", answer.json.path)
    end)

    it("S57: download gives exact bytes", function()
      local program = inspect("download", "path=/bin/busybox")
      assert.equal(200, program.status)
      assert.equal("application/octet-stream", program.headers["content-type"])
      assert.is_true(program.body == tree:read "/bin/busybox")
      assert.equal('print "hello"\n-- TODO: tests\nTODO last', inspect("download", "path=/srv/app/link").body)
      assert.equal("", inspect("download", "path=/srv/app/a+name%0Aof+two+lines").body)
      for query, status in pairs {
        ["path=/srv/app/main.lua"] = 200, ["path=/srv"] = 422, ["path=/srv/app/pipe"] = 422, ["path=/nope"] = 404,
        ["path=/srv/app/broken"] = 404, [""] = 400, ["path=/"] = 422,
      } do
        assert.equal(status, inspect("download", query).status, query)
        local head = inspect("download", query, "HEAD")
        assert.equal(status, head.status, "HEAD " .. query)
        assert.equal("", head.body)
      end
    end)

    it("S58: archive gives a tar with relative names", function()
      local answer = inspect("archive", "path=/srv/app")
      assert.equal(200, answer.status)
      assert.equal("application/x-tar", answer.headers["content-type"])
      assert.equal("chunked", answer.headers["transfer-encoding"])
      local tar = scratch.file(answer.body)
      local listed = scratch.sh("tar --quoting-style=escape -tf " .. tar)
      assert.matches("^srv/app/\n", listed)
      assert.matches("\nsrv/app/deep/%.hidden\n", listed)
      assert.is_nil(listed:find "%f[^\n%z]/")
      local long = scratch.sh("tar --numeric-owner -tvf " .. tar)
      assert.matches("%-rwsr%-xr%-x 1000/1001 +38 .- srv/app/main.lua\n", long)
      assert.matches("srv/app/notes2.txt link to srv/app/notes.txt\n", long)
      assert.equal("TODO\n", scratch.sh("tar -xOf " .. tar .. " srv/app/deep/.hidden"))
      local single = inspect("archive", "path=/etc/passwd")
      assert.equal("etc/passwd\n", scratch.sh("tar -tf " .. scratch.file(single.body)))
      assert.matches("^bin/\nbin/", scratch.sh("tar -tf " .. scratch.file(inspect("archive", "path=/").body)))
      for query, status in pairs {
        ["path=/srv/app"] = 200, ["path=/etc/passwd"] = 200, ["path=/nope"] = 404, ["path=/srv/app/pipe"] = 422,
        [""] = 400, ["path=/srv/../etc"] = 400,
      } do
        assert.equal(status, inspect("archive", query).status, query)
        local head = inspect("archive", query, "HEAD")
        assert.equal(status, head.status, "HEAD " .. query)
        assert.equal("", head.body)
      end
    end)

    it("S59: grep finds lines as ripgrep does", function()
      local answer = inspect("grep", "pattern=TODO&path=/srv/app/main.lua")
      assert.equal(200, answer.status)
      assert.same({
        path = "/srv/app/main.lua", patterns = { "TODO" }, truncated = false, matches = {
          { path = "/srv/app/main.lua", line_number = 2, absolute_offset = 14, line_text = "-- TODO: tests\n",
            line_bytes = 15, type = "match", submatches = { { text = "TODO", start = 3, ["end"] = 7 } } },
          { path = "/srv/app/main.lua", line_number = 3, absolute_offset = 29, line_text = "TODO last",
            line_bytes = 9, type = "match", submatches = { { text = "TODO", start = 0, ["end"] = 4 } } },
        },
      }, answer.json)
      local function found(query)
        local all = {}
        local result = inspect("grep", query)
        assert.equal(200, result.status, result.body)
        for i, match in ipairs(result.json.matches) do
          local sign = match.type == "context" and "-" or ""
          all[i] = ("%s:%d%s"):format(match.path:match "[^/]*$", match.line_number, sign)
        end
        return all, result.json
      end
      assert.same({ ".hidden:1", "main.lua:2", "main.lua:3", "notes.txt:2", "notes2.txt:2" },
        (found "pattern=TODO&path=/srv"))
      assert.same({ "main.lua:1", "notes.txt:1", "notes2.txt:1" }, (found "pattern=hello&pattern=%5Eone%24&path=/srv"))
      assert.same({ "notes.txt:2", "main.lua:2", "main.lua:3" },
        (found "pattern=TODO&path=/srv/app/notes.txt&path=/srv/app/main.lua"))
      assert.same({ "main.lua:2", "main.lua:3" }, (found "pattern=TODO&path=/srv/app&glob=*.lua"))
      assert.same({ ".hidden:1" }, (found "pattern=TODO&path=/srv/app&glob=!*.lua&glob=!*.txt"))
      assert.same({ "notes.txt:1-", "notes.txt:2", "notes.txt:3-" },
        (found "pattern=TODO&path=/srv/app/notes.txt&before=1&after=1"))
      assert.same({ "notes.txt:2", "notes.txt:4" }, (found "pattern=todo&case=insensitive&path=/srv/app/notes.txt"))
      assert.same({ "notes.txt:2", "notes.txt:4" }, (found "pattern=todo&case=smart&path=/srv/app/notes.txt"))
      assert.same({ "notes.txt:2" }, (found "pattern=TODO&case=smart&path=/srv/app/notes.txt"))
      assert.same({ ".hidden:1", "main.lua:2", "notes.txt:2", "notes2.txt:2" },
        (found "pattern=TODO&path=/srv&max_count=1"))
      local few, whole = found "pattern=TODO&path=/srv&max_total=2"
      assert.equal(2, #few)
      assert.is_true(whole.truncated)
      local context = inspect("grep", "pattern=TODO&path=/srv/app/notes.txt&before=1").body
      assert.matches('"submatches":%[%]', context)
      local none = inspect("grep", "pattern=nothing-like-that&path=/srv")
      assert.equal(200, none.status)
      assert.matches('"matches":%[%]', none.body)
      assert.is_false(none.json.truncated)
      assert.equal("/", inspect("grep", "pattern=TODO").json.path)
    end)

    it("S59: grep refuses what it cannot search", function()
      for query, status in pairs {
        ["path=/srv"] = 400, ["pattern="] = 400, ["pattern=("] = 400, ["pattern=x&max_total=0"] = 400,
        ["pattern=x&case=odd"] = 400, ["pattern=x&before=-1"] = 400, ["pattern=a%0Ab"] = 400,
        ["pattern=x&path=/srv&path=/nope"] = 404, ["pattern=x&max_count=x"] = 400,
        ["pattern=(a*)*%24&pattern=(x%2B%2B)"] = 200,
      } do
        local answer = inspect("grep", query)
        assert.equal(status, answer.status, query .. " " .. answer.body)
        assert.equal(status == 200, answer.json.error == nil)
      end
    end)

    it("tells the record of an image", function()
      local answer = served:get(("/inspect/%s/"):format(tree.uuid))
      assert.equal(200, answer.status)
      assert.equal(tree.uuid, answer.json.uuid)
      assert.equal(cjson.null, answer.json.operation_uuid)
      assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d+Z$", answer.json.created_at)
      assert.equal(404, served:get(NO_IMAGE .. "/").status)
      assert.equal(404, served:get("/inspect/not-a-uuid/").status)
    end)
  end)
end)
