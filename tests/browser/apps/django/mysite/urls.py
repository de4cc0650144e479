"""The admin site, and a page that needs a login."""

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, JsonResponse
from django.urls import path


@login_required(login_url="admin:login")
def me(request: HttpRequest) -> JsonResponse:
    """The request as Django sees it."""
    return JsonResponse({"url": request.build_absolute_uri(), "secure": request.is_secure()})


urlpatterns = [path("admin/", admin.site.urls), path("me/", me)]
